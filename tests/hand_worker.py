"""A worker driven by hand: it owns, takes and says what the test tells it to, and nothing else."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from schemas.codec import decode_request, encode
from schemas.fences import Acquired, Fenced
from schemas.ids import parse_request_id
from schemas.operations import ModelState, WorkerState
from schemas.replies import (
    AnyEvent,
    Events,
    Fence,
    Finished,
    Started,
    Tokens,
    TokenUsage,
)
from schemas.requests import Request
from topics.catalogue import FENCES, REPLIES, WORKERS, request_topic
from topics.ports import Appender, Log, Partition, Record, Tail


@dataclass(frozen=True)
class Taken:
    """A request as it lies on its partition."""

    request: Request
    record: Record

    @property
    def q(self) -> str:
        return f"{self.record.topic}/{self.record.partition}"


class HandWorker:
    """One incarnation, owning every standard request partition of its pool."""

    def __init__(self, log: Log, pool: str, model: str) -> None:
        self.pool = pool
        self.model = model
        self.epoch = -1
        self._log = log
        self._topic = request_topic(pool, "standard")
        self._taken: deque[Taken] = deque()
        self._appender: Appender
        self._tail: Tail

    async def start(self) -> "HandWorker":
        """Announces itself, reads from the ends on, and fences."""
        here = [
            Partition(self._topic, i) for i in range(await self._log.partition_count(self._topic))
        ]
        self._qs = tuple(str(it) for it in here)
        self._appender = await self._log.appender()
        self._tail = await self._log.tail(await self._log.end_offsets(here))
        await self.announce()
        await self.own()
        return self

    async def announce(self, state: str = "ready") -> None:
        """Tells the model on `workers`."""
        it = WorkerState(
            worker_id=self.model,
            incarnation="hand",
            pool=self.pool,
            models=(ModelState(name=self.model, context_tokens=512, state=state),),  # type: ignore[arg-type]
            slots=1,
            running=0,
            waiting=0,
            tokens_per_second=0.0,
            qs=self._qs,
            member_ids=(),
            version="0",
            time_ms=int(time.time() * 1000),
        )
        await self._appender.append(WORKERS, 0, encode(it), key=self.model.encode())

    async def own(self) -> int:
        """A, a fence on every reply partition, B. Returns the epoch."""
        partitions = await self._log.partition_count(REPLIES)
        a = Acquired(qs=self._qs, incarnation="hand", ends=await self._ends(partitions))
        self.epoch = (await self._appender.append(FENCES, 0, encode(a))).offset
        fence = encode(Fence(epoch=self.epoch, qs=self._qs))
        for index in range(partitions):
            await self._appender.append(REPLIES, index, fence)
        b = Fenced(epoch=self.epoch, ends=await self._ends(partitions))
        await self._appender.append(FENCES, 0, encode(b))
        return self.epoch

    async def _ends(self, partitions: int) -> tuple[int, ...]:
        here = [Partition(REPLIES, index) for index in range(partitions)]
        ends = await self._log.end_offsets(here)
        return tuple(ends[it] for it in here)

    async def take(self) -> Taken:
        """The next request record."""
        async with asyncio.timeout(10):
            while not self._taken:
                await self._read(0.5)
        return self._taken.popleft()

    async def take_all(self, quiet_seconds: float = 0.3) -> list[Taken]:
        """Every request record, until none has come for a while."""
        while await self._read(quiet_seconds):
            pass
        found, self._taken = list(self._taken), deque()
        return found

    async def _read(self, wait_seconds: float) -> bool:
        records = await self._tail.read(wait_seconds)
        self._taken += [Taken(decode_request(it.value), it) for it in records]
        return bool(records)

    async def say(self, *events: AnyEvent) -> None:
        """All events (of one reply partition) as one record."""
        partition = parse_request_id(events[0].id).reply_partition
        await self._appender.append(REPLIES, partition, encode(Events(events=events)))

    async def answer(self, taken: Taken, words: list[str]) -> None:
        """The whole answer, a word a token, a record a word."""
        await self.say(self.started(taken))
        for seq, word in enumerate(words):
            await self.say(self.tokens(taken, seq, word))
        await self.say(self.finished(taken, len(words)))

    def started(self, taken: Taken, count: int = 0, *, epoch: int | None = None) -> Started:
        """Begins, or goes on after `count` tokens."""
        return Started(
            id=taken.request.id,
            tenant=taken.request.tenant,
            q=taken.q,
            offset=taken.record.offset,
            epoch=self.epoch if epoch is None else epoch,
            starts=1,
            counts=(count,),
            info=taken.request.info(),
            worker="hand",
        )

    def tokens(self, taken: Taken, seq: int, *words: str, epoch: int | None = None) -> Tokens:
        """A token per word."""
        return Tokens(
            id=taken.request.id,
            tenant=taken.request.tenant,
            q=taken.q,
            offset=taken.record.offset,
            epoch=self.epoch if epoch is None else epoch,
            seq=seq,
            token_ids=tuple(range(seq, seq + len(words))),
            text="".join(words),
        )

    def finished(self, taken: Taken, count: int, *, epoch: int | None = None) -> Finished:
        """The end of an answer of `count` tokens."""
        return Finished(
            id=taken.request.id,
            tenant=taken.request.tenant,
            q=taken.q,
            offset=taken.record.offset,
            epoch=self.epoch if epoch is None else epoch,
            counts=(count,),
            usage=TokenUsage(prompt_tokens=1, completion_tokens=count),
            finish_reasons=("stop",),
        )

    async def close(self) -> None:
        """Lets go of its clients."""
        await self._tail.close()
        await self._appender.close()
