"""The first table of docs/performance.md: what was asked for, and what the kept results say."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.pipeline_report import added_over_round_trip
from benchmarks.results_file import RESULTS, percentile, spread
from benchmarks.tables import table
from benchmarks.vllm_figures import ratios, steps_added

Figures = Mapping[str, Any]
BACKLOGS = (1_000, 1_000_000)


def _both_us(it: Mapping[str, float]) -> float:
    return it["api_cpu_us_per_request"] + it["worker_cpu_us_per_request"]


def _of_case(figures: Figures, key: str, value: int) -> list[dict[str, Any]]:
    return [it for it in figures["cases"] if it[key] == value]


def _throughput(figures: Figures) -> str:
    return spread(ratios(figures["rounds"], "streams_32", "output_tokens_per_second"), 3)


def _gap(figures: Figures) -> str:
    return spread(steps_added(figures["rounds"], "streams_32"), 2)


def _first_token(figures: Figures) -> str:
    rounds = figures["at_once"]["first_token_seconds"]
    return ", ".join(spread(added_over_round_trip(rounds, share), 2) for share in (0.5, 0.95))


def _request(figures: Figures) -> str:
    return spread([_both_us(it) for it in figures["at_once"]["whole"]])


def _accept(figures: Figures) -> str:
    return spread([it["api_cpu_us_per_request"] for it in figures["at_once"]["accept"]])


def _tokens(streams: int) -> Callable[[Figures], str]:
    def show(figures: Figures) -> str:
        repeats = _of_case(figures, "streams", streams)
        return spread([it["tokens_per_api_cpu_second"] for it in repeats])

    return show


def _tokens_flat_out(figures: Figures) -> str:
    flat_out = figures["flat_out"]
    cases = [flat_out[f"flat_out_{streams}"] for streams in (64, 1000)]
    return ", ".join(spread([it["tokens_per_api_cpu_second"] for it in case]) for case in cases)


def _gateway(figures: Figures) -> str:
    return spread(figures["ratios"]["buffered"]["same_work"], 1)


def _backlog(figures: Figures) -> str:
    least, most = (map(_both_us, _of_case(figures, "depth", depth)) for depth in BACKLOGS)
    return spread([at_most / at_least for at_least, at_most in zip(least, most, strict=True)], 2)


def _memory(figures: Figures) -> str:
    most = max(it["streams"] for it in figures["cases"])
    repeats = _of_case(figures, "streams", most)
    return spread([it["idle_bytes_per_stream"]["api"] / 1024 for it in repeats], 1) + " KiB"


def _cancel(figures: Figures) -> str:
    p95 = [percentile(it["beside"], 0.95) * 1e3 for it in figures["seconds"]]
    return spread(p95, 1) + " ms"


ROWS: Sequence[tuple[str, str, str, str, Callable[[Figures], str]]] = (
    (
        "output tokens/s, ours / vLLM's own server, 32 streams, real model",
        "≥ 0.97",
        "≥ 1.00",
        "vllm_serve",
        _throughput,
    ),
    (
        "time to first token added, idle, in bare round trips: p50, p95",
        "≤ 2.0",
        "≤ 1.3",
        "pipeline",
        _first_token,
    ),
    (
        "p99 gap between tokens added, in engine steps, 32 streams, real model",
        "≤ 1",
        "",
        "vllm_serve",
        _gap,
    ),
    ("API + worker, CPU-µs per whole answer", "≤ 500", "≤ 150", "pipeline", _request),
    ("accepting a request, CPU-µs of the API", "≤ 200", "≤ 70", "pipeline", _accept),
    (
        "tokens per CPU-second of the API, as fast as there are any: 64, 1,000 streams",
        "≥ 60,000",
        "≥ 200,000",
        "pipeline",
        _tokens_flat_out,
    ),
    (
        "the same, 64 streams of 100 tokens/s: each token is a write of its own",
        "≥ 60,000",
        "≥ 200,000",
        "open_streams",
        _tokens(64),
    ),
    (
        "the same, 1,000 streams of 10 tokens/s",
        "≥ 60,000",
        "≥ 200,000",
        "open_streams",
        _tokens(1_000),
    ),
    (
        "requests per CPU-second, ours / LiteLLM's proxy, same work on both sides",
        "≥ 10",
        "≥ 25",
        "litellm",
        _gateway,
    ),
    ("CPU per request with 1,000,000 waiting / 1,000", "≤ 1.2", "≤ 1.05", "backlog", _backlog),
    ("memory of the API per idle stream", "≤ 100 KB", "≤ 50 KB", "open_streams", _memory),
    ("client closes → slot free, p95", "≤ 300 ms", "≤ 50 ms", "cancels", _cancel),
)


def show_summary() -> str:
    """Every figure whose result is there."""
    rows = []
    for label, must, aim, name, show in ROWS:
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = show(json.loads(path.read_text())["figures"])
            rows.append([label, must, aim, f"**{found}**", f"[{name}](#{ANCHORS[name]})"])
    return table(["figure", "must", "aim", "found", "by"], rows)


ANCHORS = {
    "pipeline": "requests",
    "open_streams": "open-streams",
    "litellm": "against-a-gateway",
    "vllm_serve": "against-vllms-own-server",
    "backlog": "backlog",
    "cancels": "cancelling",
}
"""Headings of the page."""
