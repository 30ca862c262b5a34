"""From the kept results to the tables of docs/performance.md: `python -m benchmarks.report`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.baseline_report import BASELINE_SHOWN
from benchmarks.open_loop_report import show_open_loop
from benchmarks.pipeline_report import show_pipeline
from benchmarks.results_file import RESULTS, spread
from benchmarks.scale_report import SCALE_SHOWN
from benchmarks.scaling_report import show_log_bytes, show_scaling
from benchmarks.summary_report import show_summary
from benchmarks.tables import table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SCALING_PAGE = PAGE.with_name("scaling.md")


def show_sse(figures: Mapping[str, Any]) -> str:
    """The table of `benchmarks.sse_response`."""
    rows = []
    for case in ("paced", "short"):
        cells = [
            spread([it["tokens_per_cpu_second"] for it in figures[case][kind]])
            for kind in ("ours", "sse-starlette")
        ]
        rows.append([case, *cells, f"{figures['ratio'][case]:.2f}"])
    return table(["tokens per CPU-second of the API", "ours", "sse-starlette", "ratio"], rows)


def show_memory(figures: Mapping[str, Any]) -> str:
    """The table of the soak run."""
    rows = []
    for part in ("api", "worker"):
        batches = [it[part] / 2**20 for it in figures["rss_bytes"]]
        stalled = [it[part] / 2**20 for it in figures["stalled_rss_bytes"]]
        grown = (stalled[1] - stalled[0]) * 1024 / figures["stalled_readers"]
        cells = [", ".join(f"{it:.1f}" for it in batches), f"{batches[-1] / batches[0]:.3f}"]
        rows.append([part, *cells, f"{grown:.0f}"])
    head = ["", "MiB after each batch", "last / first", "KiB per stalled reader"]
    return table(head, rows)


SHOWN = {
    "pipeline": show_pipeline,
    "sse_response": show_sse,
    "memory": show_memory,
    "open_loop": show_open_loop,
    **SCALE_SHOWN,
    **BASELINE_SHOWN,
}


def _origin(kept: Mapping[str, Any]) -> str:
    it = kept["machine"]
    load = " → ".join(
        str(loads[0]) for loads in (it["load_average_before"], it["load_average_after"])
    )
    speed = f" (system call {it['system_call_ns']} ns)" if "system_call_ns" in it else ""
    changed = " with changes" if kept["changed_since_commit"] else ""
    return (
        f"From `benchmarks/results/{kept['benchmark']}.json`: commit `{kept['commit'][:10]}`{changed}, "
        f"{kept['started']}, {it['cores']} cores of {it['cpu']}{speed}, load average {load}."
    )


def _put(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- results:{name} -->", f"<!-- end:{name} -->"
    before, found, behind = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{behind.partition(end)[2]}" if found else page


def filled(page: str) -> str:
    """The page with every table made anew from the kept results."""
    page = _put(page, "summary", show_summary())
    for name, show in SHOWN.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            page = _put(page, name, f"{_origin(kept)}\n\n{show(kept['figures'])}")
    return page


def filled_scaling(page: str) -> str:
    """docs/scaling.md with its tables made anew; as it is while a result is missing."""
    paths = {name: RESULTS / f"{name}.json" for name in ("pipeline", "open_streams", "log_bytes")}
    if not all(it.exists() for it in paths.values()):
        return page
    results = {name: json.loads(path.read_text()) for name, path in paths.items()}
    figures = {name: it["figures"] for name, it in results.items()}
    origin = _origin(results["log_bytes"])
    page = _put(page, "log_bytes", f"{origin}\n\n{show_log_bytes(figures['log_bytes'])}")
    return _put(page, "scaling", show_scaling(figures))


if __name__ == "__main__":
    for made, fill in ((PAGE, filled), (SCALING_PAGE, filled_scaling)):
        made.write_text(fill(made.read_text()))
        print(f"tables of docs/{made.name} made from benchmarks/results")
