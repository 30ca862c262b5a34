"""From the kept results to the tables of docs/performance.md: `python -m benchmarks.report`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.baseline_report import BASELINE_SHOWN
from benchmarks.results_file import RESULTS, percentile, spread
from benchmarks.scale_report import SCALE_SHOWN
from benchmarks.tables import of_repeats, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


REQUEST_ROWS = (
    ("requests/s", "requests_per_second", 0),
    ("API, CPU-µs per request", "api_cpu_us_per_request", 0),
    ("worker, CPU-µs per request", "worker_cpu_us_per_request", 0),
    ("broker, CPU-µs per request", "broker_cpu_us_per_request", 0),
    ("load client, CPU-µs per request", "client_cpu_us_per_request", 0),
    ("reply records per request", "reply_records_per_request", 2),
)
TOKEN_ROWS = (
    ("tokens/s", "tokens_per_second", 0),
    ("tokens per CPU-second of the API", "tokens_per_api_cpu_second", 0),
    ("tokens per CPU-second of the worker", "tokens_per_worker_cpu_second", 0),
    ("reply records per token", "reply_records_per_token", 4),
)


def _cases(figures: Mapping[str, Any], names: list[str], rows: Any, heads: list[str]) -> str:
    return table(
        ["", *heads],
        [
            [label, *(of_repeats(figures[name], key, digits) for name in names)]
            for label, key, digits in rows
        ],
    )


def _first_tokens(rounds: list[dict[str, list[float]]]) -> str:
    """p50 and p95 over each round's trials; the table has the median of the rounds."""

    def row(label: str, values: list[list[float]]) -> list[str]:
        cells = [spread([percentile(it, share) * 1e3 for it in values], 2) for share in (0.5, 0.95)]
        return [label, *cells]

    added = [
        [ours - direct for ours, direct in zip(it["pipeline"], it["direct"], strict=True)]
        for it in rounds
    ]
    bare = [it["round_trip"] for it in rounds]
    multiples = ["added, as a multiple of the bare round trip"]
    for share in (0.5, 0.95):
        ratios = [
            percentile(a, share) / percentile(b, share) for a, b in zip(added, bare, strict=True)
        ]
        multiples.append(spread(ratios, 2))
    return table(
        ["ms", "p50", "p95"],
        [
            row("through the pipeline", [it["pipeline"] for it in rounds]),
            row("the engine called directly", [it["direct"] for it in rounds]),
            row("added (paired differences)", added),
            row("bare round trip through Kafka", bare),
            multiples,
        ],
    )


def show_pipeline(figures: Mapping[str, Any]) -> str:
    """The tables of `benchmarks.pipeline`; stacks that were not run are left out."""
    parts: list[str] = []
    if at_once := figures.get("at_once"):
        names = ["accept", "whole", "streamed"]
        heads = ["accepted only", "whole answers", "streams of 16 tokens"]
        parts.append(_cases(at_once, names, REQUEST_ROWS, heads))
        parts.append(_first_tokens(at_once["first_token_seconds"]))
    streams: dict[str, Any] = {**figures.get("paced", {}), **figures.get("flat_out", {})}
    names = [it for it in ("paced_64", "paced_256", "flat_out_64") if it in streams]
    if names:
        heads = [f"{it.rpartition('_')[0]}, {it.rpartition('_')[2]} streams" for it in names]
        parts.append(_cases(streams, names, TOKEN_ROWS, [it.replace("_", " ") for it in heads]))
    rows = []
    for name, found in figures.items():
        idle = found["idle_cpu_ms_per_second"]
        rows.append(
            [name.replace("_", " "), *(f"{idle[it]:.1f}" for it in ("api", "worker", "kafka"))]
        )
    parts.append(table(["idle, CPU-ms per second", "API", "worker", "broker"], rows))
    if at_once:
        http = [
            of_repeats(at_once[it], "client_cpu_us_per_request") for it in ("whole", "whole_httpx")
        ]
        parts.append(
            table(["load client, CPU-µs per request", "httptools", "httpx"], [["", *http]])
        )
    return "\n\n".join(parts)


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
    **SCALE_SHOWN,
    **BASELINE_SHOWN,
}


def _origin(kept: Mapping[str, Any]) -> str:
    it = kept["machine"]
    load = " → ".join(
        str(loads[0]) for loads in (it["load_average_before"], it["load_average_after"])
    )
    changed = " with changes" if kept["changed_since_commit"] else ""
    return (
        f"From `benchmarks/results/{kept['benchmark']}.json`: commit `{kept['commit'][:10]}`{changed}, "
        f"{kept['started']}, {it['cores']} cores of {it['cpu']}, load average {load}."
    )


def filled(page: str) -> str:
    """The page with every table made anew from the kept results."""
    for name, show in SHOWN.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            text = f"{_origin(kept)}\n\n{show(kept['figures'])}"
            begin, end = f"<!-- results:{name} -->", f"<!-- end:{name} -->"
            before, found, behind = page.partition(begin)
            if found:
                page = f"{before}{begin}\n{text}\n{end}{behind.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"tables of docs/{PAGE.name} made from benchmarks/results")
