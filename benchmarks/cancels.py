"""A client closes its stream: how long until the worker's slot is free.

One stream after the other is opened, read until its first token, and closed. What is timed is from the
close to the arrival, in this process, of the record on `replies` that says it was cancelled. The worker
writes that after it has let the slot go, so the figure is an upper bound. `alone`, and `beside` 64
streams that go on at 100 tokens a second each.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import PATHS, LoadClient, Order
from benchmarks.load_client import RawConnection, payload
from benchmarks.results_file import Run
from benchmarks.scale_report import show_cancels
from benchmarks.stack import RunningStack, engine_words
from benchmarks.topic_load import cancelled
from schemas.codec import decode_reply
from schemas.replies import Cancelled, Events
from topics.catalogue import REPLIES
from topics.kafka import KafkaLog
from topics.ports import Partition

REPEATS = 5
TRIALS = 100
WARM_UP = 10
TOKENS = 2_000
TOKENS_PER_SECOND = 100
BESIDE = 64
ANSWER_SECONDS = 30.0
PAUSE_SECONDS = 0.02


class OpenStream(RawConnection):
    """Knows its request's id, and when its answer has begun."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.request_id = ""
        self.begun = asyncio.get_running_loop().create_future()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools calls it."""
        if name.lower() == b"x-request-id":
            self.request_id = value.decode()

    def on_body(self, data: bytes) -> None:
        """The first piece is what the trial waits for."""
        super().on_body(data)
        if not self.begun.done():
            self.begun.set_result(None)


class CancelWatch:
    """Reads `replies` from its end on."""

    def __init__(self) -> None:
        self._seen_s: dict[str, float] = {}
        self._changed = asyncio.Condition()

    async def read(self, log: KafkaLog) -> None:
        """For ever."""
        partitions = [Partition(REPLIES, i) for i in range(await log.partition_count(REPLIES))]
        tail = await log.tail(await log.end_offsets(partitions))
        try:
            while True:
                for record in await tail.read():
                    batch = decode_reply(record.value)
                    if isinstance(batch, Events):
                        await self._note(
                            [it.id for it in batch.events if isinstance(it, Cancelled)]
                        )
        finally:
            await tail.close()

    async def _note(self, ids: list[str]) -> None:
        now_s = time.perf_counter()
        async with self._changed:
            self._seen_s.update(dict.fromkeys(ids, now_s))
            self._changed.notify_all()

    async def when(self, request_id: str) -> float:
        """The time at which it was seen."""
        async with asyncio.timeout(ANSWER_SECONDS), self._changed:
            await self._changed.wait_for(lambda: request_id in self._seen_s)
            return self._seen_s.pop(request_id)

    @asynccontextmanager
    async def running(self, log: KafkaLog) -> AsyncIterator[None]:
        """Reads meanwhile."""
        task = asyncio.create_task(self.read(log))
        try:
            yield
        finally:
            await cancelled(task)


async def one(order: Order, number: int, watch: CancelWatch) -> float:
    """Seconds from the close to the record."""
    stream = OpenStream(order)
    asked = asyncio.create_task(stream.ask(PATHS["streamed"], payload(order, number)))
    async with asyncio.timeout(ANSWER_SECONDS):
        await stream.begun
    closed_s = time.perf_counter()
    await stream.close()
    seen_s = await watch.when(stream.request_id)
    with suppress(ConnectionResetError):
        await asked
    return seen_s - closed_s


async def trials(order: Order, bootstrap: str) -> list[float]:
    """One after the other; the first ones warm up."""
    log, watch, waits = KafkaLog(bootstrap, client_id="cancel-bench"), CancelWatch(), []
    try:
        async with watch.running(log):
            await asyncio.sleep(1.0)  # the reader is at the end before the first is closed
            for number in range(-WARM_UP, order.requests):
                took_s = await one(order, order.first + WARM_UP + number, watch)
                if number >= 0:
                    waits.append(took_s)
                await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await log.close()
    return waits


def beside_order(stack: RunningStack, seconds: float) -> Order:
    """Streams that last so long."""
    return Order(
        port=stack.port,
        key=stack.key,
        kind="streamed",
        requests=BESIDE,
        clients=BESIDE,
        tokens=int(seconds * TOKENS_PER_SECOND),
        first=1_000_000,
    )


def measure(count: int) -> dict[str, Any]:
    """One round: alone, then beside others."""
    options = engine_words("slots=128", f"tokens_per_second={TOKENS_PER_SECOND}")
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *options) as stack,
        LoadClient() as load,
        ThreadPoolExecutor(1) as thread,
    ):
        order = Order(
            port=stack.port,
            key=stack.key,
            kind="streamed",
            requests=count,
            clients=1,
            tokens=TOKENS,
        )
        began_s = time.monotonic()
        alone = uvloop.run(trials(order, stack.bootstrap))
        lasts = 2 * (time.monotonic() - began_s) + 5
        others = thread.submit(load.carry_out, beside_order(stack, lasts))
        beside = uvloop.run(trials(replace(order, first=10_000), stack.bootstrap))
        if others.done():
            raise SystemExit("the streams beside ended too early")
        others.result()
    return {"alone": alone, "beside": beside}


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--trials", type=int, default=TRIALS, help="in each round")
    words = parser.parse_args()
    settings: Mapping[str, Any] = {
        **vars(words),
        "tokens_per_second": TOKENS_PER_SECOND,
        "beside_streams": BESIDE,
    }
    run = Run("cancels", settings)
    rounds = [
        run.once(f"round {turn + 1} of {words.repeats}", partial(measure, words.trials))
        for turn in range(words.repeats)
    ]
    figures = {"seconds": rounds}
    print(show_cancels(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
