"""What one turn of a worker's loop says, in records that others can work through in one turn of theirs."""

from collections.abc import AsyncIterator

import pytest

from consumers.inference import replies
from consumers.inference.replies import EVENTS_MAX, ReplyWriter, Speech
from runtime.metrics import Metrics
from schemas.codec import decode_reply
from schemas.replies import Events, Tokens
from topics.catalogue import TopicSettings, catalogue
from topics.memory import MemoryLog
from topics.ports import Partition
from topics.scan import REPLIES


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog()
    await log.create(catalogue("default", TopicSettings()))
    return log


@pytest.fixture
async def writer(log: MemoryLog) -> AsyncIterator[ReplyWriter]:
    it = ReplyWriter(log, lambda: None, Metrics())
    await it.reopen()
    yield it
    await it.close()


def token(number: int, text: str = "a") -> Tokens:
    return Tokens(
        id="r", tenant="acme", q="q", offset=0, epoch=1, seq=number, token_ids=(1,), text=text
    )


async def said(log: MemoryLog) -> list[list[int]]:
    """The numbers of the tokens, record by record."""
    tail = await log.tail({Partition(REPLIES, 0): 0})
    found = []
    while records := await tail.read(max_wait_seconds=0.01):
        for record in records:
            events = decode_reply(record.value)
            assert isinstance(events, Events)
            found.append([it.seq for it in events.events if isinstance(it, Tokens)])
    await tail.close()
    return found


async def test_a_record_holds_so_many_events_and_no_more(
    log: MemoryLog, writer: ReplyWriter
) -> None:
    speech, count = Speech(), 2 * EVENTS_MAX + 1
    for number in range(count):
        writer.say(0, speech, token(number))
    await writer.settled(5.0)
    records = await said(log)
    assert [len(it) for it in records] == [EVENTS_MAX, EVENTS_MAX, 1]
    assert [number for it in records for number in it] == list(range(count))
    assert speech.open == 0


async def test_a_record_holds_so_many_bytes_and_no_more(
    log: MemoryLog, writer: ReplyWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "EVENTS_BYTES_MAX", 2_500)
    for number in range(4):
        writer.say(0, Speech(), token(number, "x" * 1_000))
    await writer.settled(5.0)
    assert await said(log) == [[0, 1], [2, 3]]
