"""What the pipeline itself costs: the scripted engine behind real Kafka, client on the same machine.

Three stacks, one after the other, differ in the pace of the engine:

- `at_once`: a whole answer in one step. Accepting (POST /v1/requests → 202), whole answers, streams
  of 16 tokens, 64 clients each; and one idle stream's time to first token, against the engine called
  directly and against a bare round trip through the same broker.
- `paced`: every stream gets 100 tokens/s, one by one: what a streamed token costs, 64 and 256 streams.
- `flat_out`: 2,000 tokens/s asked for each of 64 and 1,000 streams: what there is to be had.

Rounds of all cases of a stack are interleaved. CPU is user and system time from process accounting.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.first_token import measure_first_tokens
from benchmarks.load import Kind, LoadClient, Order
from benchmarks.pipeline_report import show_pipeline
from benchmarks.plain_kafka import count_records
from benchmarks.results_file import Run
from benchmarks.stack import RunningStack, engine_words
from topics.catalogue import REPLIES

REPEATS = 5
TRIALS = 100
IDLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of load."""

    kind: Kind
    requests: int
    clients: int
    tokens: int
    client: str = "raw"


AT_ONCE = {
    "accept": Case(kind="accept", requests=2000, clients=64, tokens=16),
    "whole": Case(kind="whole", requests=2000, clients=64, tokens=16),
    "streamed": Case(kind="streamed", requests=2000, clients=64, tokens=16),
    "whole_httpx": Case(kind="whole", requests=1000, clients=64, tokens=16, client="httpx"),
}
PACED = {
    "paced_64": Case(kind="streamed", requests=128, clients=64, tokens=300),
    "paced_256": Case(kind="streamed", requests=256, clients=256, tokens=300),
}
FLAT_OUT = {
    "flat_out_64": Case(kind="streamed", requests=128, clients=64, tokens=1000),
    "flat_out_1000": Case(kind="streamed", requests=1000, clients=1000, tokens=300),
}
STACKS: dict[str, tuple[dict[str, Case], tuple[str, ...]]] = {
    "at_once": (AT_ONCE, ("slots=1024",)),
    "paced": (PACED, ("slots=1024", "tokens_per_second=100")),
    "flat_out": (FLAT_OUT, ("slots=1024", "tokens_per_second=2000")),
}


class Bench:
    """One stack under measurement."""

    def __init__(self, stack: RunningStack, load: LoadClient) -> None:
        self._stack = stack
        self._load = load
        self._asked = 0

    def order(self, case: Case, *, requests: int | None = None) -> Order:
        """The case as an order, with prompts that were never sent before."""
        count = case.requests if requests is None else requests
        first, self._asked = self._asked, self._asked + count
        return Order(
            port=self._stack.port,
            key=self._stack.key,
            kind=case.kind,
            requests=count,
            clients=min(case.clients, count),
            tokens=case.tokens,
            first=first,
            client="httpx" if case.client == "httpx" else "raw",
            keep_times=False,
        )

    def measure(self, case: Case) -> dict[str, float]:
        """One repeat; what was only accepted runs to its end, and is counted."""
        records = uvloop.run(count_records(self._stack.bootstrap, REPLIES))
        before = self._stack.cpu_seconds()
        carried = self._load.carry_out(self.order(case))
        self._stack.wait_for_ended(self._asked)
        after = self._stack.cpu_seconds()
        records = uvloop.run(count_records(self._stack.bootstrap, REPLIES)) - records
        spent = {part: after[part] - before[part] for part in after}
        tokens = case.requests * case.tokens
        return {
            "requests_per_second": case.requests / carried.seconds,
            "tokens_per_second": tokens / carried.seconds,
            "api_cpu_us_per_request": spent["api"] / case.requests * 1e6,
            "worker_cpu_us_per_request": spent["worker"] / case.requests * 1e6,
            "broker_cpu_us_per_request": spent["kafka"] / case.requests * 1e6,
            "client_cpu_us_per_request": carried.cpu_seconds / case.requests * 1e6,
            "tokens_per_api_cpu_second": tokens / max(spent["api"], 0.001),
            "tokens_per_worker_cpu_second": tokens / max(spent["worker"], 0.001),
            "reply_records_per_request": records / case.requests,
            "reply_records_per_token": records / tokens,
        }

    def idle(self) -> dict[str, float]:
        """CPU-ms per second of each part while nothing is asked."""
        before = self._stack.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        after = self._stack.cpu_seconds()
        return {part: (after[part] - before[part]) / IDLE_SECONDS * 1e3 for part in after}

    def first_tokens(self, trials: int) -> dict[str, list[float]]:
        """One round of trials of one idle stream, in seconds."""
        warm_up = 10
        order = self.order(AT_ONCE["streamed"], requests=trials + warm_up)
        order = Order(**{**asdict(order), "requests": trials})
        found = uvloop.run(measure_first_tokens(order, self._stack.bootstrap, warm_up))
        return asdict(found)


def run_stack(name: str, load: LoadClient, repeats: int, trials: int) -> dict[str, Any]:
    """All cases of a stack, interleaved, so that a slow minute of the machine meets all alike."""
    cases, options = STACKS[name]
    found: dict[str, Any] = {case: [] for case in cases}
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *engine_words(*options)) as stack,
    ):
        bench = Bench(stack, load)
        rounds: list[dict[str, list[float]]] = []
        for repeat in range(-1, repeats):
            order = list(cases) if repeat % 2 else list(reversed(cases))
            for case in order:
                figures = bench.measure(cases[case])
                if repeat >= 0:  # the round before warms up
                    found[case].append(figures)
            if name == "at_once" and repeat >= 0:
                rounds.append(bench.first_tokens(trials))
            print(f"{name}: round {max(repeat + 1, 0)} of {repeats}", flush=True)
        found["idle_cpu_ms_per_second"] = bench.idle()
        if rounds:
            found["first_token_seconds"] = rounds
    return found


def settings(repeats: int, trials: int) -> Mapping[str, Any]:
    """What another run would need to be the same."""
    stacks = {
        name: {"engine_options": options, "cases": {k: asdict(v) for k, v in cases.items()}}
        for name, (cases, options) in STACKS.items()
    }
    return {"repeats": repeats, "first_token_trials": trials, "stacks": stacks}


def main() -> None:
    """Starts everything, measures, keeps the result, ends everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of the idle stream, per round")
    parser.add_argument("--stack", choices=list(STACKS), help="only this one; nothing is kept")
    words = parser.parse_args()
    run = Run("pipeline", settings(words.repeats, words.trials))
    figures: dict[str, Any] = {}
    with LoadClient() as load:
        for name in [words.stack] if words.stack else STACKS:
            measure = partial(run_stack, name, load, words.repeats, words.trials)
            figures[name] = measure() if words.stack else run.once(name, measure)
    print(show_pipeline(figures))
    if not words.stack:
        run.keep(figures)


if __name__ == "__main__":
    main()
