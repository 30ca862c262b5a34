"""What open event streams cost one API replica: memory while they are silent, CPU when they speak.

On a fresh stack all streams are opened; the engine holds its first token back, so that at first
nothing but the open streams is there (resident memory, against the same process warmed up before).
Then all speak, in step, as the sequences of a batch do: tokens per CPU-second of the API between when
the last has begun and when the first ends. 1,000 streams of 10 tokens a second and 10,000 of 1 are the
same 10,000 tokens a second.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Carried, LoadClient, Order
from benchmarks.loop_lag import lags, late_shares
from benchmarks.results_file import Run
from benchmarks.scale_report import show_open_streams
from benchmarks.stack import RunningStack, engine_words

REPEATS = 3
WARM_UP_REQUESTS = 500
WARM_UP_TOKENS = 2
SETTLE_SECONDS = 1.0
MARGIN_SECONDS = 1.0
LOOK_SECONDS = 0.3
"""The metrics are read so long before: it takes a moment, which the margin has to hold."""
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many streams, each of so many tokens at such a rate, silent for so long at first.

    They are opened evenly over `opening_seconds`.
    """

    streams: int
    tokens_per_second: int
    tokens: int
    silent_seconds: int
    opening_seconds: float = 0.0


CASES = (
    Case(streams=1, tokens_per_second=100, tokens=1_500, silent_seconds=8),
    Case(streams=64, tokens_per_second=100, tokens=1_500, silent_seconds=8),
    Case(streams=1_000, tokens_per_second=10, tokens=150, silent_seconds=10),
    Case(streams=10_000, tokens_per_second=1, tokens=45, silent_seconds=25, opening_seconds=10.0),
)
PATIENCE = {f"INFERLOG_LIMIT_{name}_SECONDS": "300" for name in ("START", "FIRST_TOKEN")}
"""The bounds of a request that waits are shorter than the longest silence above."""


def order_of(case: Case, stack: RunningStack) -> Order:
    """All streams of the case at once."""
    return Order(
        port=stack.port,
        key=stack.key,
        kind="streamed",
        requests=case.streams,
        clients=case.streams,
        tokens=case.tokens,
        count_events=True,
        ramp_seconds=case.opening_seconds,
    )


def wait_for_streams(stack: RunningStack, count: int, seconds: float) -> None:
    """Until so many are open."""
    until_s = time.monotonic() + seconds
    while stack.metric("api", "inferlog_open_streams") < count:
        if time.monotonic() > until_s:
            raise SystemExit(f"fewer than {count} streams were open after {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def measure(case: Case) -> dict[str, Any]:
    """One round on a fresh stack."""
    options = ["slots=20000", f"tokens_per_second={case.tokens_per_second}"]
    options.append(f"ttft_ms={case.silent_seconds * 1000}")
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *engine_words(*options), environ=PATIENCE) as stack,
        LoadClient() as load,
        ThreadPoolExecutor(1) as thread,
    ):
        # short answers, taken together: they wait out the silence once, and all code was run
        load.carry_out(
            Order(
                port=stack.port,
                key=stack.key,
                kind="whole",
                requests=WARM_UP_REQUESTS,
                clients=WARM_UP_REQUESTS,
                tokens=WARM_UP_TOKENS,
                first=1_000_000,
            )
        )
        stack.wait_for_ended(WARM_UP_REQUESTS)
        before_bytes = {part: stack.memory_bytes(part) for part in ("api", "worker")}
        before_s = stack.cpu_seconds()
        answered = thread.submit(load.carry_out, order_of(case, stack))
        wait_for_streams(stack, case.streams, case.silent_seconds)
        opened_s, opened_at_s = stack.cpu_seconds(), time.monotonic()
        time.sleep(SETTLE_SECONDS)
        idle_at_s = int(time.monotonic())
        idle_bytes = {part: stack.memory_bytes(part) for part in ("api", "worker")}
        speaking_at_s = opened_at_s + case.silent_seconds + MARGIN_SECONDS
        time.sleep(max(0.0, speaking_at_s - LOOK_SECONDS - time.monotonic()))
        lag_before = lags(stack)
        time.sleep(max(0.0, speaking_at_s - time.monotonic()))
        first_s, spent = steady(stack, case)
        late = late_shares(lag_before, lags(stack))
        carried: Carried = answered.result()
    if any(int(second) < idle_at_s for second in carried.events_at):
        raise SystemExit("a stream spoke before all were open: a longer silence is needed")
    seconds = range(first_s, first_s + window_seconds(case))
    tokens = sum(carried.events_at.get(str(second), 0) for second in seconds)
    return {
        "streams": case.streams,
        "idle_bytes_per_stream": {
            part: (idle_bytes[part] - before_bytes[part]) / case.streams for part in before_bytes
        },
        "opening_api_cpu_us_per_stream": (opened_s["api"] - before_s["api"]) / case.streams * 1e6,
        "client_cpu_seconds": carried.cpu_seconds,
        "tokens": tokens,
        "seconds": len(seconds),
        **{f"{part}_cpu_seconds": it for part, it in spent.items()},
        **late,
        "tokens_per_api_cpu_second": tokens / max(spent["api"], 0.01),
        "tokens_per_worker_cpu_second": tokens / max(spent["worker"], 0.01),
    }


def window_seconds(case: Case) -> int:
    """For so long all speak."""
    return int(case.tokens / case.tokens_per_second - case.opening_seconds - 2 * MARGIN_SECONDS)


def steady(stack: RunningStack, case: Case) -> tuple[int, dict[str, float]]:
    """While all speak: the first whole second of it, and the CPU-seconds of each part."""
    first_s = int(time.monotonic()) + 1
    time.sleep(first_s - time.monotonic())
    before = stack.cpu_seconds()
    time.sleep(first_s + window_seconds(case) - time.monotonic())
    after = stack.cpu_seconds()
    return first_s, {part: after[part] - before[part] for part in after}


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each case")
    parser.add_argument("--streams", type=int, nargs="+", help="only these cases")
    words = parser.parse_args()
    cases = [it for it in CASES if not words.streams or it.streams in words.streams]
    settings: Mapping[str, Any] = {"repeats": words.repeats, "cases": [asdict(it) for it in cases]}
    run = Run("open_streams", settings)
    measured = run.by_turns(cases, words.repeats, lambda it: f"{it.streams:,} streams", measure)
    figures = {"cases": measured}
    print(show_open_streams(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
