"""Many seeds: what they covered and what they found, added up over processes."""

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.simulation.world import METRICS, run

CHUNK = 20


@dataclass(slots=True)
class Summary:
    """`sometimes` counts faults and branches; `failed` are seeds with their first violation."""

    seeds: int = 0
    requests: int = 0
    handles: int = 0
    virtual_seconds: float = 0.0
    cpu_seconds: float = 0.0
    sometimes: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: "Summary") -> None:
        """Takes another one in."""
        self.seeds += other.seeds
        self.requests += other.requests
        self.handles += other.handles
        self.virtual_seconds += other.virtual_seconds
        self.cpu_seconds += other.cpu_seconds
        self.sometimes.update(other.sometimes)
        self.failed += other.failed

    def table(self) -> dict[str, object]:
        """As JSON keeps it."""
        return {
            "seeds": self.seeds,
            "requests": self.requests,
            "violations": len(self.failed),
            "failed_seeds": [{"seed": seed, "violation": text} for seed, text in self.failed],
            "handles_run": self.handles,
            "virtual_seconds": round(self.virtual_seconds),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "requests_per_cpu_second": round(self.requests / max(0.001, self.cpu_seconds)),
            "cpu_milliseconds_per_seed": round(1000 * self.cpu_seconds / max(1, self.seeds), 1),
            "sometimes": dict(sorted(self.sometimes.items())),
        }


def product_counts() -> Counter[str]:
    """The product's own counters, as they stand: they tell which of its branches were taken."""
    counts: Counter[str] = Counter()
    for family in METRICS.registry.collect():
        for sample in family.samples:
            if family.type == "counter" and sample.name.endswith("_total"):
                labels = " ".join(v for k, v in sorted(sample.labels.items()) if k != "tier")
                name = sample.name.removeprefix("inferlog_").removesuffix("_total")
                counts[f"product: {name} {labels}".rstrip()] += int(sample.value)
    return counts


def run_seeds(seeds: Iterable[int], size: float = 1.0) -> Summary:
    """In this process."""
    summary = Summary()
    began_s = time.process_time()
    before = product_counts()
    for seed in seeds:
        outcome = run(seed, size=size)
        summary.seeds += 1
        summary.requests += outcome.requests
        summary.handles += outcome.handles
        summary.virtual_seconds += outcome.virtual_s
        summary.sometimes.update(outcome.counts)
        if outcome.violations:
            summary.failed.append((seed, str(outcome.violations[0])))
    after = product_counts()
    after.subtract(before)
    summary.sometimes.update({name: count for name, count in after.items() if count})
    summary.cpu_seconds = time.process_time() - began_s
    return summary


def run_many(
    first: int,
    count: int,
    *,
    size: float = 1.0,
    processes: int = 1,
    on_progress: Callable[[Summary], None] | None = None,
    enough: Callable[[Summary], bool] = lambda _: False,
) -> Summary:
    """Seeds `first` … `first + count - 1`, until there are enough of them."""
    total = Summary()
    for part in _parts(first, count, size, processes):
        total.add(part)
        if on_progress is not None:
            on_progress(total)
        if enough(total):
            break
    total.failed.sort()
    return total


def _parts(first: int, count: int, size: float, processes: int) -> Iterator[Summary]:
    chunks = [
        (range(begin, min(begin + CHUNK, first + count)), size)
        for begin in range(first, first + count, CHUNK)
    ]
    if processes == 1:
        yield from map(_run_chunk, chunks)
        return
    # a virtual clock is in no hurry: what runs beside and watches a real one goes first
    with multiprocessing.get_context("spawn").Pool(processes, os.nice, (19,)) as pool:
        yield from pool.imap_unordered(_run_chunk, chunks)


def _run_chunk(chunk: tuple[range, float]) -> Summary:
    return run_seeds(*chunk)
