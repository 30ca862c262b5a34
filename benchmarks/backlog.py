"""What a request costs by how many wait behind it: 1,000, 100,000 and 1,000,000 in the batch tier.

    python -m benchmarks.backlog

Each depth gets a stack of its own, the depths in turn (up, then down). The backlog is produced straight
to the topic, and kept at its depth: as many requests are added as are ended. The engine paces the work
(so many slots, each busy for as long), so that every depth is measured at the same rate. Measured over a
window: CPU of worker and API per ended request, resident memory of the worker, and afterwards the time
to the first token of a request of the standard tier that is asked for over HTTP beside the backlog.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import PATHS, Order
from benchmarks.load_client import RawConnection, payload, verify
from benchmarks.results_file import Run, percentile
from benchmarks.scale_report import show_backlog
from benchmarks.stack import RunningStack, engine_words
from benchmarks.topic_load import RequestProducer, cancelled, end_of
from topics.catalogue import USAGE
from topics.kafka import KafkaLog

DEPTHS = (1_000, 100_000, 1_000_000)
REPEATS = 3
WINDOW_REQUESTS = 15_000
TRIALS = 50
TOKENS = 16
SLOTS = 128
TTFT_MS = 100
"""With the slots: at most 1,280 requests a second, half of what a worker can do on a core it shares."""
REFILL_SECONDS = 0.05
WARM_UP_SECONDS = 3.0

Ended = Callable[[], Coroutine[Any, Any, int]]


async def keep_depth(producer: RequestProducer, depth: int, ended: Ended) -> None:
    """Adds what has been ended, for ever."""
    while True:
        await producer.produce(max(0, depth - (producer.produced - await ended())))
        await asyncio.sleep(REFILL_SECONDS)


async def first_tokens(stack: RunningStack, trials: int) -> list[float]:
    """Seconds from asking to the first byte of a streamed answer, one request after the other."""
    order = Order(
        port=stack.port,
        key=stack.key,
        kind="streamed",
        requests=trials,
        clients=1,
        tokens=TOKENS,
    )
    connection = RawConnection(order)
    waits: list[float] = []
    try:
        for number in range(trials):
            body = payload(order, number)
            begun_s = time.perf_counter()
            status, answer = await connection.ask(PATHS["streamed"], body)
            waits.append(connection.first_byte_s - begun_s)
            verify(order, number, status, answer)
    finally:
        await connection.close()
    return waits


async def window(
    stack: RunningStack, producer: RequestProducer, ended: Ended, requests: int
) -> dict[str, Any]:
    """CPU per request over so many ended ones, and how deep the backlog was meanwhile."""
    before, begun, begun_s = stack.cpu_seconds(), await ended(), time.monotonic()
    depths: list[int] = []
    while (done := await ended()) < begun + requests:
        depths.append(producer.produced - done)
        await asyncio.sleep(0.25)
    after, took_s = stack.cpu_seconds(), time.monotonic() - begun_s
    count = done - begun
    figures: dict[str, Any] = {
        f"{part}_cpu_us_per_request": (after[part] - before[part]) / count * 1e6 for part in after
    }
    return figures | {
        "requests": count,
        "requests_per_second": count / took_s,
        "depth_min": min(depths),
        "depth_max": max(depths),
    }


async def measure(depth: int, requests: int, trials: int) -> dict[str, Any]:
    """One depth on a fresh stack."""
    words = engine_words(f"slots={SLOTS}", f"ttft_ms={TTFT_MS}")
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), "--workers", "1", *words) as stack,
    ):
        log = KafkaLog(stack.bootstrap, client_id="backlog-bench")
        producer = await RequestProducer.open(log, "batch", TOKENS)

        async def ended() -> int:
            # one usage record for each request that has ended; asking the log costs the worker nothing
            return await end_of(log, USAGE)

        idle_bytes = stack.memory_bytes("worker")
        begun_s = time.monotonic()
        await producer.produce(depth)
        produce_s = time.monotonic() - begun_s
        keeping = asyncio.create_task(keep_depth(producer, depth, ended))
        try:
            await asyncio.sleep(WARM_UP_SECONDS)
            figures = await window(stack, producer, ended, requests)
            memory_bytes = stack.memory_bytes("worker")
            waits = await first_tokens(stack, trials)
        finally:
            await cancelled(keeping)
            await producer.close()
            await log.close()
    return figures | {
        "depth": depth,
        "produce_seconds": produce_s,
        "worker_idle_bytes": idle_bytes,
        "worker_bytes": memory_bytes,
        "first_token_p50_seconds": percentile(waits, 0.5),
        "first_token_p95_seconds": percentile(waits, 0.95),
    }


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each depth")
    parser.add_argument("--requests", type=int, default=WINDOW_REQUESTS, help="in each window")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of the first token, each time")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    words = parser.parse_args()
    run = Run(
        "backlog",
        {**vars(words), "slots": SLOTS, "ttft_ms": TTFT_MS, "tokens": TOKENS, "workers": 1},
    )
    measured = run.by_turns(
        words.depths,
        words.repeats,
        lambda it: f"{it:,} waiting",
        lambda it: uvloop.run(measure(it, words.requests, words.trials)),
    )
    figures = {"cases": measured}
    print(show_backlog(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
