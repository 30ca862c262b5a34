"""Requests and filler straight onto the topics, as fast as one process can append them."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable

from schemas.codec import encode
from schemas.envelope import request_headers
from schemas.ids import RANDOM_BITS, make_request_id
from schemas.requests import COMPLETIONS, Body, Deadlines, Request, Tier
from topics.catalogue import REPLIES, request_topic
from topics.kafka import KafkaLog
from topics.ports import Appender, Partition

IN_FLIGHT = 8192
LINGER_MS = 5
SHOW_EVERY_SECONDS = 5.0
DAY_SECONDS = 24 * 3600.0
PROMPT = "word " * 30


class Progress:
    """A line now and then: done of how many, and how fast."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._began_s = self._shown_s = time.monotonic()

    def show(self, done: int) -> None:
        """Prints if the last line is old enough, or all is done."""
        now_s = time.monotonic()
        if self._total > IN_FLIGHT and (
            now_s - self._shown_s >= SHOW_EVERY_SECONDS or done >= self._total
        ):
            self._shown_s = now_s
            rate = done / max(now_s - self._began_s, 0.001)
            share = done / self._total
            print(f"  {self._what}: {done:,} of {self._total:,} ({share:.0%}), {rate:,.0f}/s")


class Window:
    """Awaits the oldest acknowledgements, so that only so many are open at once."""

    def __init__(self) -> None:
        self._open: deque[Awaitable[object]] = deque()

    async def add(self, ack: Awaitable[object]) -> None:
        """Waits when the window is full, until half of it is acknowledged."""
        self._open.append(ack)
        if len(self._open) >= IN_FLIGHT:
            await self.drain(IN_FLIGHT // 2)

    async def drain(self, left: int = 0) -> None:
        """Raises what an append raised."""
        while len(self._open) > left:
            await self._open.popleft()


class RequestProducer:
    """Appends requests of one tier: one encoded body, in which only the id changes."""

    def __init__(self, log: KafkaLog, appender: Appender, tier: Tier, max_tokens: int) -> None:
        self._log = log
        self._appender = appender
        self.topic = request_topic("default", tier)
        request = Request(
            id=make_request_id(0, 0, 0),
            tenant="default",
            tier=tier,
            model="scripted",
            endpoint=COMPLETIONS,
            body=Body(prompt=PROMPT, max_tokens=max_tokens),
            deadlines=Deadlines(
                start_seconds=DAY_SECONDS,
                first_token_seconds=DAY_SECONDS,
                total_seconds=DAY_SECONDS,
            ),
        )
        self._before, self._behind = encode(request).split(request.id.encode())
        self.produced = 0

    @classmethod
    async def open(cls, log: KafkaLog, tier: Tier, max_tokens: int) -> "RequestProducer":
        """With an appender of its own; `close` it."""
        return cls(log, await log.appender(linger_ms=LINGER_MS), tier, max_tokens)

    async def produce(self, count: int) -> None:
        """Returns when all are acknowledged; request and reply partitions take turns."""
        partitions = await self._log.partition_count(self.topic)
        replies = await self._log.partition_count(REPLIES)
        progress, window = Progress(self.topic, count), Window()
        for number in range(count):
            now_ms = time.time_ns() // 1_000_000
            request_id = make_request_id(now_ms, number % replies, secrets.randbits(RANDOM_BITS))
            value = self._before + request_id.encode() + self._behind
            headers = request_headers(request_id, "default", now_ms)
            partition = number % partitions
            await window.add(self._appender.append(self.topic, partition, value, headers=headers))
            if number % 4096 == 0:
                progress.show(number)
        await window.drain()
        self.produced += count
        progress.show(count)

    async def close(self) -> None:
        """Lets go of the appender."""
        await self._appender.close()


async def end_of(log: KafkaLog, topic: str) -> int:
    """Records ever appended to a topic: the sum of its partitions' end offsets."""
    count = await log.partition_count(topic)
    ends = await log.end_offsets([Partition(topic, index) for index in range(count)])
    return sum(ends.values())


async def cancelled(task: "asyncio.Task[None]") -> None:
    """Ends a task; raises what it had raised by itself."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
