"""The tables of docs/scaling.md: what is measured, and what follows from it for a larger cluster."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import table
from schemas.requests import TIERS

Figures = Mapping[str, Any]

REQUESTS_PER_SECOND = 10_000
ANSWER_TOKENS = 150
SECONDS_PER_ANSWER = 4
"""Both from the scenario: 150 tokens in about 4 seconds."""
REQUESTS_PER_WORKER = 50
"""A second: the scenario's instance with quantisation and cached prefixes."""
CELLS = 4
LOAD = 0.6
"""How busy a core may be for latencies to hold."""
REPLICATION = 3
REQUEST_HOURS, REPLY_HOURS, USAGE_HOURS = 48, 1, 168
"""The defaults of the topics."""
REQUEST_PARTITIONS = 64
"""Of a tier in a cell: at least one for each of its workers."""
BROKERS_PER_CELL = 3
"""As many as there are copies, if one carries a third of a cell's records."""


def show_log_bytes(figures: Figures) -> str:
    """The table of `benchmarks.log_bytes`."""
    rows = [
        [f"`{topic}`", f"{it['records_per_request']:.2f}", f"{it['bytes_per_request']:,.0f}"]
        for topic, it in figures["topics"].items()
    ]
    total = [
        sum(it[name] for it in figures["topics"].values())
        for name in ("records_per_request", "bytes_per_request")
    ]
    rows.append(["together", f"{total[0]:.2f}", f"{total[1]:,.0f}"])
    return table(["topic", "records per request", "bytes per request"], rows)


def partitions_met(streams: float, partitions: int) -> float:
    """Of so many reply partitions, those that one of a worker's streams belongs to: records a step."""
    return float(partitions * (1 - (1 - 1 / partitions) ** streams))


def _records(steps: float, cells: int, replicas: int) -> tuple[int, float]:
    """Reply partitions of a cell, one for each API replica; records a second of all cells together."""
    partitions = math.ceil(replicas / cells)
    return partitions, steps * partitions_met(REQUESTS_PER_WORKER * SECONDS_PER_ANSWER, partitions)


def _median(repeats: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(it[name] for it in repeats)


def show_scaling(results: Mapping[str, Figures]) -> str:
    """From `pipeline`, `open_streams` and `log_bytes` to 10,000 requests a second."""
    request_us = _median(results["pipeline"]["at_once"]["streamed"], "api_cpu_us_per_request")
    worker_us = _median(results["pipeline"]["at_once"]["streamed"], "worker_cpu_us_per_request")
    many = [it for it in results["open_streams"]["cases"] if it["streams"] == 1_000]
    token_us = 1e6 / _median(many, "tokens_per_api_cpu_second")
    # 64 streams in 4 partitions: 16 tokens a record, about what a worker's record has in a cell
    few = [it for it in results["open_streams"]["cases"] if it["streams"] == 64]
    worker_token_us = 1e6 / _median(few, "tokens_per_worker_cpu_second")
    broker_token_us = statistics.median(it["kafka_cpu_seconds"] / it["tokens"] for it in few) * 1e6
    stream_kib = statistics.median(it["idle_bytes_per_stream"]["api"] for it in many) / 1024
    tokens_per_s = REQUESTS_PER_SECOND * ANSWER_TOKENS
    request_cores = REQUESTS_PER_SECOND * request_us / 1e6
    token_cores = tokens_per_s * token_us / 1e6
    open_streams = REQUESTS_PER_SECOND * SECONDS_PER_ANSWER
    workers = REQUESTS_PER_SECOND / REQUESTS_PER_WORKER
    by_topic = results["log_bytes"]["topics"]
    per_request = sum(it["bytes_per_request"] for it in by_topic.values())
    request_bytes = by_topic["requests.default.standard"]["bytes_per_request"]
    reply_bytes = by_topic["replies"]["bytes_per_request"]
    usage_bytes = by_topic["usage"]["bytes_per_request"]
    written = REQUESTS_PER_SECOND * per_request
    replicas = math.ceil((request_cores + token_cores) / LOAD)
    steps = workers * ANSWER_TOKENS / SECONDS_PER_ANSWER
    one, cells = (_records(steps, cells, replicas) for cells in (1, CELLS))
    kept = (
        (request_bytes, REQUEST_HOURS),
        (reply_bytes, REPLY_HOURS),
        (usage_bytes, USAGE_HOURS),
    )
    kept_bytes = sum(each * hours * 3600 for each, hours in kept) * REQUESTS_PER_SECOND
    rows = [
        (
            "requests: API cores",
            f"10,000 x {request_us:.0f} µs",
            f"{request_cores:.1f}",
            "measured",
        ),
        (
            "tokens a second",
            f"10,000 x {ANSWER_TOKENS}",
            f"{tokens_per_s:,}",
            "the scenario",
        ),
        (
            "tokens: API cores",
            f"{tokens_per_s:,} x {token_us:.1f} µs",
            f"{token_cores:.0f}",
            "measured",
        ),
        (
            "API replicas, a core each",
            f"({request_cores:.1f} + {token_cores:.0f}) / {LOAD}",
            f"**{replicas}**",
            f"measured; a core is kept at {LOAD:.0%}",
        ),
        (
            "open streams",
            f"10,000 x {SECONDS_PER_ANSWER} s",
            f"{open_streams:,}",
            "the scenario",
        ),
        (
            "their memory, all replicas together",
            f"{open_streams:,} x {stream_kib:.0f} KiB",
            f"{open_streams * stream_kib / 2**20:.1f} GiB",
            "measured",
        ),
        ("workers", f"10,000 / {REQUESTS_PER_WORKER}", f"**{workers:.0f}**", "the scenario"),
        (
            "CPU of a worker for the log, cores",
            f"{REQUESTS_PER_WORKER} x ({worker_us:.0f} + {ANSWER_TOKENS} x {worker_token_us:.1f}) µs",
            f"{REQUESTS_PER_WORKER * (worker_us + ANSWER_TOKENS * worker_token_us) / 1e6:.2f}",
            "measured, 16 tokens a record",
        ),
        (
            "CPU of brokers that hold the only copy, cores",
            f"{tokens_per_s:,} x {broker_token_us:.1f} µs",
            f"{tokens_per_s * broker_token_us / 1e6:.0f}",
            "measured, 16 tokens a record",
        ),
        (
            "steps of all workers a second",
            f"{workers:.0f} x {ANSWER_TOKENS} / {SECONDS_PER_ANSWER}",
            f"{steps:,.0f}",
            "the scenario",
        ),
        (
            f"reply records a second, {one[0]} reply partitions",
            f"{steps:,.0f} steps x {one[1] / steps:.2f}",
            f"{one[1]:,.0f}",
            "arithmetic",
        ),
        (
            f"the same in {CELLS} cells of {cells[0]} reply partitions each",
            f"{steps:,.0f} steps x {cells[1] / steps:.2f}",
            f"**{cells[1]:,.0f}**",
            "arithmetic",
        ),
        (
            "brokers",
            f"{CELLS} cells x {BROKERS_PER_CELL}",
            f"**{CELLS * BROKERS_PER_CELL}**",
            "assumed, see below",
        ),
        (
            "request partitions",
            f"{CELLS} cells x {len(TIERS)} tiers x {REQUEST_PARTITIONS}",
            f"**{CELLS * len(TIERS) * REQUEST_PARTITIONS:,}**",
            "one or more for each worker of a cell",
        ),
        (
            "reply partitions",
            f"{CELLS} cells x {cells[0]}",
            f"**{CELLS * cells[0]}**",
            "one for each replica",
        ),
        (
            "bytes a second onto the log",
            f"10,000 x {per_request:,.0f}",
            f"{written / 1e6:,.0f} MB/s",
            "measured",
        ),
        (
            f"with {REPLICATION} copies, and read once",
            f"{written / 1e6:,.0f} x {REPLICATION}; + {written / 1e6:,.0f} out",
            f"**{written * REPLICATION / 1e6:,.0f} MB/s** written, {written / 1e6:,.0f} MB/s read",
            "arithmetic",
        ),
        *(
            (
                f"disk: {what} for {hours} h",
                f"10,000 x {each:,.0f} x {hours * 3600:,} s x {REPLICATION}",
                f"{each * hours * 3600 * REQUESTS_PER_SECOND * REPLICATION / 1e12:.1f} TB",
                "measured; the topics' defaults",
            )
            for what, (each, hours) in zip(("requests", "replies", "usage"), kept, strict=True)
        ),
        (
            "disk, together",
            "",
            f"**{kept_bytes * REPLICATION / 1e12:.1f} TB**",
            "arithmetic",
        ),
    ]
    return table(["what", "arithmetic", "comes to", "rests on"], rows)
