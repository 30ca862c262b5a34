"""`expired` is said of a request only when the log was read and holds no other end of it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from core.limits import Limits
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.submission import Draft
from runtime.metrics import Metrics
from schemas.replies import Finished
from schemas.requests import CHAT, Body, Deadlines, Message
from tests.hand_worker import HandWorker
from topics.catalogue import REPLIES, TopicSettings, catalogue
from topics.memory import MemoryLog, MemoryTail
from topics.ports import Partition, Record

POOL = "late"
LIMITS = Limits(deadline_margin_seconds=0.2)
EXPIRES_AFTER_SECONDS = 2 * 0.2 + 0.2


class LateLog(MemoryLog):
    """The tail of `replies` is given nothing while it is held back; an end may be told late."""

    held_back = False
    ends_wait_seconds = 0.0
    tails = 0

    async def tail(self, positions: Mapping[Partition, int]) -> MemoryTail:
        tail = await super().tail(positions)
        self.tails += any(it.topic == REPLIES for it in positions)
        if self.tails == 1:
            read = tail.read

            async def late(
                max_wait_seconds: float = 0.5, *bounds: Any, **more: Any
            ) -> list[Record]:
                if not self.held_back:
                    return await read(min(max_wait_seconds, 0.001), *bounds, **more)
                await asyncio.sleep(0.01)
                return []

            tail.read = late  # type: ignore[method-assign]
        return tail

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        ends = await super().end_offsets(partitions)
        if any(it.topic == REPLIES for it in partitions):
            await asyncio.sleep(self.ends_wait_seconds)
        return ends


async def started(log: LateLog) -> tuple[Pipeline, HandWorker]:
    await log.create(catalogue(POOL, TopicSettings()))
    worker = await HandWorker(log, POOL, "m").start()
    api = Pipeline(log, LIMITS, Metrics())
    await api.start()
    return api, worker


def draft() -> Draft:
    return Draft(
        tenant="one",
        tier="standard",
        model="m",
        endpoint=CHAT,
        body=Body(messages=(Message(role="user", content="hello"),)),
        deadlines=Deadlines(total_seconds=0.2),
    )


async def test_a_stream_that_lags_reads_the_log_before_it_says_expired() -> None:
    log = LateLog()
    api, worker = await started(log)
    submission = await api.submit(draft())
    taken = await worker.take()
    events: list[Visible] = await submission.stream.next(1.0)
    assert len(events) == 1
    log.held_back = True
    await worker.answer(taken, ["one ", "two "])
    async with asyncio.timeout(10):
        while not (events and is_terminal(events[-1])):
            events += await submission.stream.next(1.0)
    assert isinstance(events[-1], Finished)
    await submission.stream.close()
    await api.stop()
    await worker.close()


async def test_a_status_is_of_the_moment_up_to_which_the_log_was_read() -> None:
    log = LateLog()
    api, worker = await started(log)
    submission = await api.submit(draft())
    log.ends_wait_seconds = EXPIRES_AFTER_SECONDS + 0.1
    # whatever was appended meanwhile was not read
    assert (await api.status("one", submission.request_id)).state == "queued"
    assert (await api.status("one", submission.request_id)).state == "expired"
    await submission.stream.close()
    await api.stop()
    await worker.close()
