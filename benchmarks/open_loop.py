"""Latency under load, by arrivals that keep their schedule (no coordinated omission).

First the generator itself, against a server that knows one answer: the highest rate at which it still sends
on time is its ceiling. Then streams of 16 tokens (the scripted engine gives them at once) at rising
rates, Poisson arrivals, times counted from when each request was due.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import JsonProcess
from benchmarks.loop_lag import lags, late_shares
from benchmarks.open_loop_client import Kept, Schedule
from benchmarks.open_loop_report import ON_TIME_SECONDS, show_open_loop
from benchmarks.results_file import Run, percentile
from benchmarks.server import Server
from benchmarks.stack import RunningStack, engine_words
from inferlog.local_ports import any_free

REPEATS = 5
SECONDS = 8.0
TOKENS = 16
RATES = (100, 500, 1_000, 1_500, 2_000)
CEILING_RATES = (1_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000)


class LoadGenerator(JsonProcess):
    """The open-loop client."""

    def __init__(self) -> None:
        super().__init__("open_loop_client")

    def keep(self, schedule: Schedule) -> Kept:
        """Blocks until all is answered. Raises SystemExit if it gave up."""
        return Kept(**self.ask(asdict(schedule)))


def answered(kept: Kept) -> int:
    """Of the arrivals, those that were sent and taken."""
    return kept.due - kept.given_up - kept.refused


def figures_of(kept: Kept, rate: float) -> dict[str, float]:
    """Percentiles of one schedule."""
    found: dict[str, float] = {
        "rate": rate,
        "requests": answered(kept),
        "given_up": kept.given_up,
        "refused": kept.refused,
        "generator_cpu_us_per_request": kept.cpu_seconds / answered(kept) * 1e6,
    }
    times: dict[str, Sequence[float]] = {
        "late": kept.late_seconds,
        "first_byte": kept.first_byte_seconds,
        "whole": kept.whole_seconds,
    }
    for name, seconds in times.items():
        for share in (0.5, 0.95, 0.99):
            found[f"{name}_p{share * 100:.0f}_seconds"] = percentile(seconds, share)
    return found


def ceiling(seconds: float) -> list[dict[str, float]]:
    """The generator alone, at rising rates, until it is late."""
    port = any_free("127.0.0.1", 1)
    found = []
    command = [sys.executable, "-m", "benchmarks.bare_server", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        Server(command, port, "/", Path(folder)),
        LoadGenerator() as generator,
    ):
        for rate in CEILING_RATES:
            schedule = Schedule(
                port=port,
                key="none",
                kind="streamed",
                tokens=TOKENS,
                rate=rate,
                seconds=seconds,
                seed=rate,
            )
            found.append(figures_of(generator.keep(schedule), rate))
            if found[-1]["late_p99_seconds"] > ON_TIME_SECONDS:
                break
    return found


def measure(turn: int, seconds: float) -> list[dict[str, float]]:
    """One round of all rates on a fresh stack."""
    rates = RATES if turn % 2 == 0 else tuple(reversed(RATES))
    found, first, ended = [], 0, 0
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *engine_words("slots=1024")) as stack,
        LoadGenerator() as generator,
    ):
        for rate in (rates[0], *rates):  # the one before warms up
            schedule = Schedule(
                port=stack.port,
                key=stack.key,
                kind="streamed",
                tokens=TOKENS,
                rate=rate,
                seconds=seconds,
                seed=turn * 100_000 + rate,
                first=first,
            )
            before, lag_before = stack.cpu_seconds(), lags(stack)
            kept = generator.keep(schedule)
            first += kept.due
            ended += answered(kept)
            stack.wait_for_ended(ended)
            after, lag_after = stack.cpu_seconds(), lags(stack)
            spent = {
                f"{part}_cpu_us_per_request": (after[part] - before[part]) / answered(kept) * 1e6
                for part in after
            }
            found.append(figures_of(kept, rate) | spent | late_shares(lag_before, lag_after))
    return found[1:]


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at each rate")
    words = parser.parse_args()
    settings: dict[str, Any] = {**vars(words), "rates": RATES, "ceiling_rates": CEILING_RATES}
    run = Run("open_loop", {**settings, "tokens": TOKENS, "on_time_seconds": ON_TIME_SECONDS})
    figures: dict[str, Any] = {
        "generator": run.once("the generator alone", partial(ceiling, words.seconds)),
        "cases": [],
    }
    for turn in range(words.repeats):
        what = f"round {turn + 1} of {words.repeats}"
        figures["cases"] += run.once(what, partial(measure, turn, words.seconds))
    print(show_open_loop(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
