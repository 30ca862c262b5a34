"""The tables of the benchmarks of scale: a row for each case, medians with lowest and highest."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results_file import spread
from benchmarks.tables import of_repeats, table

Figures = Mapping[str, Any]


def _by(cases: Sequence[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    """Repeats of each case, the cases in rising order."""
    keys = sorted({it[name] for it in cases})
    return {key: [it for it in cases if it[name] == key] for key in keys}


def _cpu_of_both(it: Mapping[str, float]) -> float:
    return it["api_cpu_us_per_request"] + it["worker_cpu_us_per_request"]


def show_backlog(figures: Figures) -> str:
    """The table of `benchmarks.backlog`, each depth against the smallest."""
    by_depth = _by(figures["cases"], "depth")
    least = next(iter(by_depth.values()))
    base_us = statistics.median(map(_cpu_of_both, least))
    base_bytes = statistics.median(it["worker_bytes"] for it in least)
    rows = []
    for depth, repeats in by_depth.items():
        both_us = [_cpu_of_both(it) for it in repeats]
        memory = [it["worker_bytes"] / 2**20 for it in repeats]
        rows.append(
            [
                f"{depth:,}",
                spread(both_us),
                f"{statistics.median(both_us) / base_us:.2f}",
                of_repeats(repeats, "worker_cpu_us_per_request"),
                spread(memory),
                f"{statistics.median(memory) * 2**20 / base_bytes:.2f}",
                spread([it["first_token_p50_seconds"] * 1e3 for it in repeats]),
                of_repeats(repeats, "requests_per_second"),
            ]
        )
    head = ["waiting", "API + worker, CPU-µs per request", "ratio", "of it the worker"]
    head += ["worker, MiB", "ratio", "first token beside it, p50 ms", "requests/s"]
    return table(head, rows)


SCALE_SHOWN: dict[str, Callable[[Figures], str]] = {"backlog": show_backlog}
