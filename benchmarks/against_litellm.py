"""What a request costs through Inferlog, through LiteLLM's proxy, and at a service without either.

The same scripted engine answers all three, 16 tokens in one step:

- `inferlog`: API, real Kafka, worker; the engine is in the worker.
- `litellm`: the proxy (one worker, no database, no callbacks) before the plain service.
- `plain`: the plain service alone (`benchmarks.plain_service`), the floor.

One load client asks them in turn, A-B-C-C-B-A, over 64 connections. Inferlog and LiteLLM check a key;
the plain service checks none. LiteLLM gets fewer requests, being slower; CPU per request is compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.baseline_report import show_litellm
from benchmarks.load import Kind, LoadClient, Order
from benchmarks.results_file import Run
from benchmarks.server import Server
from benchmarks.servers import (
    LITELLM_ENVIRON,
    LitellmProxy,
    litellm_config,
    litellm_version,
    plain_service,
)
from benchmarks.stack import RunningStack, engine_words

REPEATS = 5
REQUESTS = 2000
LITELLM_SHARE = 0.15
CLIENTS = 64
TOKENS = 16
SLOTS = "slots=1024"
SETTLE_SECONDS = 1.0
"""After the last answer: what a server does about it afterwards is its cost as well."""
WARM_UP_CHECKED = 64

Name = Literal["inferlog", "litellm", "plain"]
WAYS: tuple[Name, ...] = ("inferlog", "litellm", "plain")
CASES: Mapping[str, Kind] = {"buffered": "whole", "streamed": "streamed"}
SERVING: Mapping[Name, tuple[str, ...]] = {
    "inferlog": ("api", "worker"),
    "litellm": ("proxy", "upstream"),
    "plain": ("service",),
}
"""The parts that do the work; broker and load client are listed apart."""

Repeat = dict[str, float]


class Way(Protocol):
    """One of the three."""

    port: int
    key: str

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of each part so far."""
        ...


class ThroughInferlog:
    """`inferlog up`."""

    def __init__(self, stack: RunningStack) -> None:
        self.port, self.key = stack.port, stack.key
        self._stack = stack

    def cpu_seconds(self) -> dict[str, float]:
        """Kafka is called the broker."""
        spent = self._stack.cpu_seconds()
        return {"api": spent["api"], "worker": spent["worker"], "broker": spent["kafka"]}


class ThroughServers:
    """The servers by the names of their parts; the first one is asked."""

    def __init__(self, key: str, **parts: Server) -> None:
        self.port, self.key = next(iter(parts.values())).port, key
        self._parts = parts

    def cpu_seconds(self) -> dict[str, float]:
        """Of each server."""
        return {name: server.cpu_seconds() for name, server in self._parts.items()}


class Bench:
    """The three, and who asks them."""

    def __init__(
        self, ways: Mapping[Name, Way], load: LoadClient, requests: Mapping[Name, int]
    ) -> None:
        self._ways = ways
        self._load = load
        self._requests = requests
        self._asked = 0

    def order(self, name: Name, case: str, requests: int, *, check: bool = False) -> Order:
        """As many requests of a case, with prompts that were never sent before."""
        way = self._ways[name]
        first, self._asked = self._asked, self._asked + requests
        return Order(
            port=way.port,
            key=way.key,
            kind=CASES[case],
            requests=requests,
            clients=min(CLIENTS, requests),
            tokens=TOKENS,
            first=first,
            check=check,
        )

    def warm_up(self, name: Name, case: str) -> None:
        """Some answers are read word for word, so that what is measured is known to be right."""
        self._load.carry_out(self.order(name, case, WARM_UP_CHECKED, check=True))
        self.measure(name, case)

    def measure(self, name: Name, case: str) -> Repeat:
        """One repeat."""
        way, requests = self._ways[name], self._requests[name]
        before = way.cpu_seconds()
        carried = self._load.carry_out(self.order(name, case, requests))
        time.sleep(SETTLE_SECONDS)
        after = way.cpu_seconds()
        spent_us = {part: (after[part] - before[part]) / requests * 1e6 for part in after}
        spent_us["client"] = carried.cpu_seconds / requests * 1e6
        return {
            "requests_per_second": requests / carried.seconds,
            "tokens_per_second": requests * TOKENS / carried.seconds,
            **{f"{part}_cpu_us_per_request": us for part, us in spent_us.items()},
        }


def cost(repeat: Mapping[str, float], *parts: str) -> float:
    """CPU-µs per request of these parts."""
    return sum(repeat[f"{part}_cpu_us_per_request"] for part in parts)


def ratios(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> dict[str, list[float]]:
    """Requests per CPU-second, Inferlog over LiteLLM, of each round: counted three ways."""
    counted = {
        "gateway": (("api",), ("proxy",)),
        "same_work": (SERVING["inferlog"], SERVING["litellm"]),
        "least_favourable": (SERVING["inferlog"], ("proxy",)),
    }
    return {
        name: [cost(b, *their) / cost(a, *our) for a, b in zip(ours, theirs, strict=True)]
        for name, (our, their) in counted.items()
    }


def added(by_way: Mapping[Name, Sequence[Repeat]]) -> dict[Name, list[float]]:
    """CPU-µs per request more than the plain service takes, of each round."""
    floor = [cost(it, *SERVING["plain"]) for it in by_way["plain"]]
    return {
        name: [
            cost(it, *SERVING[name]) - least for it, least in zip(by_way[name], floor, strict=True)
        ]
        for name in WAYS
        if name != "plain"
    }


def run_rounds(run: Run, bench: Bench, repeats: int) -> dict[str, dict[Name, list[Repeat]]]:
    """All ways and cases in turn, so that a slow minute of the machine meets all alike."""
    found: dict[str, dict[Name, list[Repeat]]]
    found = {case: {name: [] for name in WAYS} for case in CASES}
    for name in WAYS:
        for case in CASES:
            bench.warm_up(name, case)
    for repeat in range(repeats):
        for name in reversed(WAYS) if repeat % 2 else WAYS:
            for case in CASES:
                what = f"{case}, {name}, {repeat + 1} of {repeats}"
                found[case][name].append(run.once(what, partial(bench.measure, name, case)))
    return found


def measure(run: Run, repeats: int, requests: Mapping[Name, int]) -> dict[str, Any]:
    """Starts all, measures, ends all."""
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as data,
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as other,
        plain_service(Path(other), SLOTS) as plain,
        LitellmProxy(Path(other), plain.port) as proxy,
        RunningStack(Path(data), *engine_words(SLOTS)) as stack,
        LoadClient() as load,
    ):
        ways: dict[Name, Way] = {
            "inferlog": ThroughInferlog(stack),
            "litellm": ThroughServers(proxy.key, proxy=proxy, upstream=plain),
            "plain": ThroughServers("none", service=plain),
        }
        cases = run_rounds(run, Bench(ways, load, requests), repeats)
    return {
        "cases": cases,
        "ratios": {case: ratios(it["inferlog"], it["litellm"]) for case, it in cases.items()},
        "added_cpu_us_per_request": {case: added(by_way) for case, by_way in cases.items()},
    }


def main() -> None:
    """Measures, keeps, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="per round; LiteLLM: 15 %%")
    words = parser.parse_args()
    requests: dict[Name, int] = dict.fromkeys(WAYS, words.requests)
    requests["litellm"] = max(CLIENTS, round(words.requests * LITELLM_SHARE))
    settings = {
        "repeats": words.repeats,
        "requests": requests,
        "clients": CLIENTS,
        "tokens": TOKENS,
        "engine_options": [SLOTS],
        "litellm": litellm_version(),
        "litellm_environ": LITELLM_ENVIRON,
        "litellm_config": litellm_config(0, "sk-…"),
    }
    run = Run("litellm", settings)
    figures = measure(run, words.repeats, requests)
    run.keep(figures)
    print(show_litellm(figures))
    for case, found in figures["ratios"].items():
        print(f"{case}: same work, ratio {statistics.median(found['same_work']):.1f}")


if __name__ == "__main__":
    main()
