"""The first table of docs/performance.md: what was asked for, and what the kept results say."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pipeline_report import added_over_round_trip
from benchmarks.results_file import RESULTS, percentile, spread
from benchmarks.tables import table
from benchmarks.vllm_figures import added, ratios, steps_added

Figures = Mapping[str, Any]
Rounds = Sequence[float]
BACKLOGS = (1_000, 1_000_000)


@dataclass(frozen=True)
class Bar:
    """A line of the table: `measured` gives the rounds of each figure that the label names."""

    label: str
    result: str
    measured: Callable[[Figures], Sequence[Rounds]]
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    digits: int = 0
    unit: str = ""

    def figures(self) -> Sequence[Rounds]:
        """As they were kept."""
        return self.measured(json.loads((RESULTS / f"{self.result}.json").read_text())["figures"])

    def is_met(self) -> bool:
        """Whether the median of each figure is what it must be."""
        if self.must is None:
            return True
        medians = [statistics.median(rounds) for rounds in self.figures()]
        return all(it >= self.must if self.at_least else it <= self.must for it in medians)

    def row(self) -> list[str]:
        """Its cells."""
        found = ", ".join(spread(rounds, self.digits) for rounds in self.figures())
        by = f"[{self.result}](#{ANCHORS[self.result]})"
        return [self.label, self._asked(self.must), self._asked(self.aim), f"**{found}**", by]

    def _asked(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {value:,g} {self.unit}".strip()


def _both_us(it: Mapping[str, float]) -> float:
    return it["api_cpu_us_per_request"] + it["worker_cpu_us_per_request"]


def _of_case(figures: Figures, key: str, value: int) -> list[dict[str, Any]]:
    return [it for it in figures["cases"] if it[key] == value]


def _throughput(figures: Figures) -> Sequence[Rounds]:
    return [ratios(figures["rounds"], "streams_32", "output_tokens_per_second")]


def _gap_steps(figures: Figures) -> Sequence[Rounds]:
    return [steps_added(figures["rounds"], "streams_32")]


def _gap_ms(figures: Figures) -> Sequence[Rounds]:
    return [added(figures["rounds"], case, "p99_itl_ms") for case in ("streams_32", "one_stream")]


def _first_token(figures: Figures) -> Sequence[Rounds]:
    rounds = figures["at_once"]["first_token_seconds"]
    return [added_over_round_trip(rounds, share) for share in (0.5, 0.95)]


def _request(figures: Figures) -> Sequence[Rounds]:
    return [[_both_us(it) for it in figures["at_once"]["whole"]]]


def _accept(figures: Figures) -> Sequence[Rounds]:
    return [[it["api_cpu_us_per_request"] for it in figures["at_once"]["accept"]]]


def _tokens(streams: int) -> Callable[[Figures], Sequence[Rounds]]:
    def measured(figures: Figures) -> Sequence[Rounds]:
        repeats = _of_case(figures, "streams", streams)
        return [[it["tokens_per_api_cpu_second"] for it in repeats]]

    return measured


def _tokens_flat_out(figures: Figures) -> Sequence[Rounds]:
    cases = [figures["flat_out"][f"flat_out_{streams}"] for streams in (64, 1000)]
    return [[it["tokens_per_api_cpu_second"] for it in case] for case in cases]


def _gateway(figures: Figures) -> Sequence[Rounds]:
    return [figures["ratios"]["buffered"]["same_work"]]


def _backlog(figures: Figures) -> Sequence[Rounds]:
    least, most = (map(_both_us, _of_case(figures, "depth", depth)) for depth in BACKLOGS)
    return [[at_most / at_least for at_least, at_most in zip(least, most, strict=True)]]


def _memory(figures: Figures) -> Sequence[Rounds]:
    most = max(it["streams"] for it in figures["cases"])
    repeats = _of_case(figures, "streams", most)
    return [[it["idle_bytes_per_stream"]["api"] / 1000 for it in repeats]]


def _cancel(figures: Figures) -> Sequence[Rounds]:
    return [
        [percentile(it[case], 0.95) * 1e3 for it in figures["seconds"]]
        for case in ("alone", "beside")
    ]


def _streamed(label: str, result: str, measured: Callable[[Figures], Sequence[Rounds]]) -> Bar:
    return Bar(label, result, measured, must=60_000, aim=200_000, at_least=True)


BARS: Sequence[Bar] = (
    Bar(
        "output tokens/s, ours / vLLM's own server, 32 streams, real model, round by round",
        "vllm_serve",
        _throughput,
        must=0.97,
        aim=1,
        at_least=True,
        digits=3,
    ),
    Bar(
        "time to first token added, idle, in bare round trips: p50, p95",
        "pipeline",
        _first_token,
        must=2,
        aim=1.3,
        digits=2,
    ),
    Bar(
        "p99 gap between tokens added, in engine steps, 32 streams, real model",
        "vllm_serve",
        _gap_steps,
        must=1,
        digits=2,
    ),
    Bar("the same, ms: 32 streams, one stream", "vllm_serve", _gap_ms, aim=2, digits=1, unit="ms"),
    Bar("API + worker, CPU-µs per whole answer", "pipeline", _request, must=500, aim=150),
    Bar("accepting a request, CPU-µs of the API", "pipeline", _accept, must=200, aim=70),
    _streamed(
        "tokens per CPU-second of the API, as fast as there are any: 64, 1,000 streams",
        "pipeline",
        _tokens_flat_out,
    ),
    _streamed(
        "the same, 64 streams of 100 tokens/s: each token is a write of its own",
        "open_streams",
        _tokens(64),
    ),
    _streamed("the same, 1,000 streams of 10 tokens/s", "open_streams", _tokens(1_000)),
    Bar(
        "requests per CPU-second, ours / LiteLLM's proxy, same work on both sides",
        "litellm",
        _gateway,
        must=10,
        aim=25,
        at_least=True,
        digits=1,
    ),
    Bar(
        "CPU per request with 1,000,000 waiting / 1,000",
        "backlog",
        _backlog,
        must=1.2,
        aim=1.05,
        digits=2,
    ),
    Bar(
        "memory of the API per idle stream, of 10,000",
        "open_streams",
        _memory,
        must=100,
        aim=50,
        digits=1,
        unit="KB",
    ),
    Bar(
        "client closes → slot free, p95: alone, beside 64 streams",
        "cancels",
        _cancel,
        must=300,
        aim=50,
        digits=1,
        unit="ms",
    ),
)


def show_summary() -> str:
    """Every figure whose result is there."""
    rows = [bar.row() for bar in BARS if (RESULTS / f"{bar.result}.json").exists()]
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
