"""The tables of the benchmarks of scale: a row for each case, medians with lowest and highest."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results_file import percentile, spread
from benchmarks.tables import mean_share, of_repeats, table

Figures = Mapping[str, Any]

STREAMS_THAT_SHOW = 1_000
"""Streams enough for what is counted in pages, or in ticks of a clock."""


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


def show_open_streams(figures: Figures) -> str:
    """The table of `benchmarks.open_streams`."""
    rows = []
    for streams, repeats in _by(figures["cases"], "streams").items():
        idle = [
            spread([it["idle_bytes_per_stream"][part] / 1024 for it in repeats], 1)
            for part in ("api", "worker")
        ]
        rows.append(
            [
                f"{streams:,}",
                # of a few streams, a page of the allocator more or less is all that would show
                *(idle if streams >= STREAMS_THAT_SHOW else ["", ""]),
                of_repeats(repeats, "tokens_per_api_cpu_second"),
                of_repeats(repeats, "tokens_per_worker_cpu_second"),
                spread([it["tokens"] / it["seconds"] for it in repeats]),
                # a clock tick is 10 ms, or 156 µs for each of 64
                of_repeats(repeats, "opening_api_cpu_us_per_stream")
                if streams >= STREAMS_THAT_SHOW
                else "",
                *(mean_share(repeats, f"{part}_loop_late_share") for part in ("api", "worker")),
            ]
        )
    head = ["open streams", "API, KiB per silent stream", "worker, KiB"]
    head += ["tokens per API CPU-second", "per worker CPU-second", "tokens/s"]
    head += ["opening one, API CPU-µs", "API's loop late by more than 5 ms", "worker's"]
    return table(head, rows)


def show_cancels(figures: Figures) -> str:
    """The table of `benchmarks.cancels`: percentiles of each round, then the median of the rounds."""
    rows = []
    for case in ("alone", "beside"):
        rounds = [it[case] for it in figures["seconds"]]
        cells = [spread([percentile(it, s) * 1e3 for it in rounds], 2) for s in (0.5, 0.95, 0.99)]
        rows.append([case if case == "alone" else "beside 64 streams", *cells])
    return table(["client closes → slot free, ms", "p50", "p95", "p99"], rows)


def show_replicas(figures: Figures) -> str:
    """The table of `benchmarks.replicas`."""
    rows = []
    shapes = list(dict.fromkeys((it["replicas"], it["workers"]) for it in figures["cases"]))
    for shape in sorted(shapes):
        repeats = [it for it in figures["cases"] if (it["replicas"], it["workers"]) == shape]
        parts = ("api", "worker", "kafka", "client")
        rows.append(
            [
                f"{shape[0]} API, {shape[1]} worker{'s' if shape[1] > 1 else ''}",
                spread([_cpu_of_both(it) for it in repeats]),
                *(of_repeats(repeats, f"{part}_cpu_us_per_request") for part in parts),
                of_repeats(repeats, "requests_per_second"),
                of_repeats(repeats, "reply_records_per_request", 2),
                spread([it["at_rest_cpu_ms_per_second"]["api"] for it in repeats]),
                spread([it["at_rest_cpu_ms_per_second"]["worker"] for it in repeats]),
            ]
        )
    head = ["", "API + worker, CPU-µs per request", "API", "worker", "broker", "load client"]
    head += ["requests/s", "reply records per request", "at rest, CPU-ms/s: API", "worker"]
    return table(head, rows)


def show_late_followers(figures: Figures) -> str:
    """The table of `benchmarks.late_followers`."""
    rows = []
    for length, repeats in _by(figures["cases"], "answers").items():
        for which in ("early", "late"):
            found = [it[which] for it in repeats]
            rows.append(
                [
                    f"{length:,}",
                    "from its beginning" if which == "early" else "of just now",
                    of_repeats(found, "api_cpu_us_per_reader"),
                    of_repeats(found, "broker_cpu_us_per_reader"),
                    spread([it["p50_seconds"] * 1e3 for it in found], 1),
                    spread([it["p95_seconds"] * 1e3 for it in found], 1),
                ]
            )
    head = ["answers on the log", "answers read back", "API, CPU-µs each", "broker, CPU-µs each"]
    return table([*head, "p50 ms", "p95 ms"], rows)


def show_recovery(figures: Figures) -> str:
    """The table of `benchmarks.recovery`."""
    rows = []
    axes = ("suspects", "backlog", "older", "before", "beside", "standby")
    for case in dict.fromkeys(tuple(it[axis] for axis in axes) for it in figures["cases"]):
        repeats = [it for it in figures["cases"] if tuple(it[axis] for axis in axes) == case]
        new = [it["new_process"] for it in repeats]
        rows.append(
            [
                *(f"{count:,}" for count in case),
                spread([it["kill_to_next_token_seconds"]["p95"] for it in repeats], 2),
                # another worker has run for long, and goes on with what it has
                *(
                    [of_repeats(new, "cpu_seconds_since_start", 2), of_repeats(new, "peak_mib")]
                    if all(new)
                    else ["", ""]
                ),
            ]
        )
    head = [
        "running requests",
        "waiting behind them",
        "records of others, old",
        "from just before",
    ]
    head += ["beside", "other workers"]
    head += ["kill to next token, p95 s", "CPU-s of the new process", "its peak memory, MiB"]
    return table(head, rows)


SCALE_SHOWN: dict[str, Callable[[Figures], str]] = {
    "backlog": show_backlog,
    "open_streams": show_open_streams,
    "cancels": show_cancels,
    "replicas": show_replicas,
    "late_followers": show_late_followers,
    "recovery": show_recovery,
}
