"""Where a successor begins to read: not where a silent worker had last spoken."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from consumers.inference import replies
from consumers.inference.identity import request_group
from consumers.inference.replies import ReplyWriter
from core.offsets import Handle, decode_positions
from runtime.metrics import Metrics
from tests.memory_stack import POOL, MemoryStack
from topics.catalogue import REPLIES, TopicSettings, catalogue, request_topic
from topics.memory import MemoryLog
from topics.ports import LogError, Partition


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "ENDS_SECONDS", 0.02)


@pytest_asyncio.fixture
async def writer() -> AsyncIterator[ReplyWriter]:
    log = MemoryLog()
    await log.create(catalogue(POOL, TopicSettings()))
    it = ReplyWriter(log, lambda: None, Metrics())
    await it.reopen()
    it.reached = {0: 0, 1: 0}
    following = asyncio.create_task(it.follow_ends())
    yield it
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await it.close()


def log_of(writer: ReplyWriter) -> MemoryLog:
    assert isinstance(writer._log, MemoryLog)
    return writer._log


async def others_speak(log: MemoryLog, partition: int, records: int) -> None:
    appender = await log.appender()
    for _ in range(records):
        await appender.append(REPLIES, partition, b"{}")
    await appender.close()


async def until_ends_are(writer: ReplyWriter, ends: dict[int, int]) -> None:
    async with asyncio.timeout(5):
        while writer.reached != ends:
            await asyncio.sleep(0.01)


async def test_what_others_say_moves_the_mark_of_what_is_begun_later(writer: ReplyWriter) -> None:
    log = log_of(writer)
    before, after = Handle(0), Handle(1)
    writer.begin(before, 1)
    await others_speak(log, 1, 5)
    await until_ends_are(writer, {0: 0, 1: 5})
    writer.begin(after, 1)
    writer.begin(before, 1)
    assert (before.spoken_at, after.spoken_at) == ((1, 0), (1, 5))


async def test_a_log_that_is_away_is_asked_again(
    writer: ReplyWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(writer)
    asked = 0

    async def away(_: object) -> dict[Partition, int]:
        nonlocal asked
        asked += 1
        raise LogError("away")

    with monkeypatch.context() as patched:
        patched.setattr(log, "end_offsets", away)
        await others_speak(log, 0, 3)
        async with asyncio.timeout(5):
            while asked < 2:
                await asyncio.sleep(0.01)
        assert writer.reached == {0: 0, 1: 0}
    await until_ends_are(writer, {0: 3, 1: 0})


async def test_a_position_that_was_acknowledged_meanwhile_stays(writer: ReplyWriter) -> None:
    writer.reached[0] = 7
    await asyncio.sleep(0.1)
    assert writer.reached == {0: 7, 1: 0}


async def test_a_silent_worker_commits_where_the_log_has_come_to() -> None:
    stack = await MemoryStack().start()
    await stack.worker(session_seconds=0.6)
    assert isinstance(stack.log, MemoryLog)
    for partition in range(stack.log.size(REPLIES)):
        await others_speak(stack.log, partition, 100)
    q = Partition(request_topic(POOL, "standard"), 0)
    replies_of_all = [Partition(REPLIES, index) for index in range(stack.log.size(REPLIES))]
    ends = tuple((await stack.log.end_offsets(replies_of_all)).values())
    async with asyncio.timeout(10):
        while True:
            at = (await stack.log.committed(request_group(POOL, "standard"), [q])).get(q)
            if at is not None and decode_positions(at.metadata) == ends:
                break
            await asyncio.sleep(0.05)
    await stack.stop()
