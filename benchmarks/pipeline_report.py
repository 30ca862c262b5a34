"""The tables of `benchmarks.pipeline`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results_file import percentile, spread
from benchmarks.tables import of_repeats, table

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
TOKEN_CASES = ("paced_64", "paced_256", "flat_out_64", "flat_out_1000")


def _cases(figures: Mapping[str, Any], names: list[str], rows: Any, heads: list[str]) -> str:
    return table(
        ["", *heads],
        [
            [label, *(of_repeats(figures[name], key, digits) for name in names)]
            for label, key, digits in rows
        ],
    )


def _added(one: Mapping[str, Sequence[float]]) -> list[float]:
    return [ours - direct for ours, direct in zip(one["pipeline"], one["direct"], strict=True)]


def added_over_round_trip(
    rounds: Sequence[Mapping[str, Sequence[float]]], share: float
) -> list[float]:
    """A percentile of what is added, as a multiple of the bare round trip's, round by round."""
    return [percentile(_added(it), share) / percentile(it["round_trip"], share) for it in rounds]


def _first_tokens(rounds: list[dict[str, list[float]]]) -> str:
    """p50 and p95 over each round's trials; the table has the median of the rounds."""

    def row(label: str, values: list[list[float]]) -> list[str]:
        cells = [spread([percentile(it, share) * 1e3 for it in values], 2) for share in (0.5, 0.95)]
        return [label, *cells]

    multiples = ["added, as a multiple of the bare round trip"]
    multiples += [spread(added_over_round_trip(rounds, share), 2) for share in (0.5, 0.95)]
    return table(
        ["ms", "p50", "p95"],
        [
            row("through the pipeline", [it["pipeline"] for it in rounds]),
            row("the engine called directly", [it["direct"] for it in rounds]),
            row("added (paired differences)", [_added(it) for it in rounds]),
            row("bare round trip through Kafka", [it["round_trip"] for it in rounds]),
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
    names = [it for it in TOKEN_CASES if it in streams]
    if names:
        heads = [f"{it.rpartition('_')[0]}, {int(it.rpartition('_')[2]):,} streams" for it in names]
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
