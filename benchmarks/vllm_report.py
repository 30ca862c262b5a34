"""The tables of `benchmarks.against_vllm`."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results_file import spread
from benchmarks.tables import table
from benchmarks.vllm_figures import (
    ARMS,
    OURS,
    THEIRS,
    added,
    cpu_ms_per_token,
    each,
    ratios,
    steps_added,
)

Figures = Mapping[str, Any]

VLLM_CASES = {"streams_32": "32 streams", "one_stream": "one stream"}
_TIMES = {
    "time to first token, ms": "ttft",
    "gap between chunks, ms": "itl",
}


def show_vllm_serve(figures: Figures) -> str:
    """The tables of `benchmarks.against_vllm`: rates and times of each case, then CPU per token."""
    rounds = figures["rounds"]
    rows: list[list[str]] = []
    for case, label in VLLM_CASES.items():
        name = "output_tokens_per_second"
        cells = [spread(each(rounds, case, arm, name), 1) for arm in ARMS]
        ratio = spread(ratios(rounds, case, name), 3)
        rows.append([f"{label}: output tokens/s", *cells, f"ratio {ratio}"])
        for what, metric in _TIMES.items():
            for share in (50, 95, 99):
                name = f"p{share}_{metric}_ms"
                cells = [spread(each(rounds, case, arm, name), 1) for arm in ARMS]
                more = f"added {spread(added(rounds, case, name), 1)}"
                rows.append([f"{label}: {what}, p{share}", *cells, more])
        steps = spread(steps_added(rounds, case), 2)
        rows.append([f"{label}: added to the p99 gap, in engine steps", "", "", steps])
        failed = [f"{sum(each(rounds, case, arm, 'failed')):.0f}" for arm in ARMS]
        rows.append([f"{label}: failed requests", *failed, ""])
    head = ["", "Inferlog", "vLLM's own server", "round by round"]
    return "\n\n".join([table(head, rows), _vllm_cpu(figures)])


def _vllm_cpu(figures: Figures) -> str:
    rounds, idle = figures["rounds"], figures["idle_cpu_ms_per_second"]
    names = {OURS: "Inferlog", THEIRS: "vLLM's own server"}
    rows: list[list[str]] = []
    for arm in ARMS:
        for part in rounds[0]["streams_32"][arm]["cpu_seconds"]:
            cells = [spread(cpu_ms_per_token(rounds, case, arm, part), 3) for case in VLLM_CASES]
            at_rest = f"{idle[arm][part]:.1f}" if part in idle[arm] else ""
            rows.append([f"{names[arm]}: {part}", *cells, at_rest])
    head = ["CPU-ms per output token", *VLLM_CASES.values(), "idle, CPU-ms per second"]
    return table(head, rows)
