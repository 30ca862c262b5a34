"""The tables of `benchmarks.open_loop`."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results_file import spread
from benchmarks.tables import mean_share, table

ON_TIME_SECONDS = 0.005
"""The generator keeps its schedule while 99 % of requests are sent no later than this."""


def show_open_loop(figures: Mapping[str, Any]) -> str:
    """The pipeline at rising rates, then the generator alone."""
    rates = sorted({it["rate"] for it in figures["cases"]})
    rows = []
    for rate in rates:
        repeats = [it for it in figures["cases"] if it["rate"] == rate]
        times = ("first_byte_p50", "first_byte_p95", "first_byte_p99", "whole_p99", "late_p99")
        rows.append(
            [
                f"{rate:,}",
                f"{sum(it['given_up'] + it['refused'] for it in repeats):,}",
                *(spread([it[f"{name}_seconds"] * 1e3 for it in repeats], 1) for name in times),
                *(mean_share(repeats, f"{part}_loop_late_share") for part in ("api", "worker")),
                spread(
                    [
                        it["api_cpu_us_per_request"] + it["worker_cpu_us_per_request"]
                        for it in repeats
                    ]
                ),
            ]
        )
    head = [
        "requests/s due",
        "not sent, or refused",
        "first token, p50 ms",
        "p95",
        "p99",
        "whole answer, p99 ms",
    ]
    head += ["sent late by, p99 ms", "API's loop late by more than 5 ms", "worker's"]
    head += ["API + worker, CPU-µs per request"]
    alone = [
        [
            f"{it['rate']:,}",
            f"{it['late_p50_seconds'] * 1e3:.2f}",
            f"{it['late_p99_seconds'] * 1e3:.2f}",
            f"{it['generator_cpu_us_per_request']:.0f}",
        ]
        for it in figures["generator"]
    ]
    kept = [it["rate"] for it in figures["generator"] if it["late_p99_seconds"] <= ON_TIME_SECONDS]
    ceiling = f"The generator's ceiling, 99 % sent within {ON_TIME_SECONDS * 1e3:.0f} ms: "
    unmet = len(kept) < len(figures["generator"])
    ceiling += f"{'' if unmet else 'at least '}{max(kept, default=0):,} requests/s."
    own = ["the generator alone, requests/s due", "sent late by, p50 ms", "p99 ms"]
    own.append("its CPU-µs per request")
    return "\n\n".join([table(head, rows), table(own, alone), ceiling])
