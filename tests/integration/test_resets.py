"""`fences` made anew, commits that are off the log: noticed, loud, and no answer spliced."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from consumers.inference.service import InferenceService
from schemas.codec import encode
from schemas.fences import Fenced
from schemas.replies import Fence
from tests.memory_stack import POOL, MemoryStack, scripted_answer, text_of
from topics import fence_tail
from topics.catalogue import FENCES, REPLIES, TopicSettings, catalogue, request_topic
from topics.fence_tail import FencesLost, FenceTail
from topics.memory import MemoryLog
from topics.ports import Committed, Log, Partition

pytestmark = pytest.mark.timeout(60)

TOPIC = request_topic(POOL, "standard")
Q = Partition(TOPIC, 0)


@pytest_asyncio.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryStack]:
    monkeypatch.setattr(fence_tail, "IDENTITY_SECONDS", 0.1)
    stack = await MemoryStack().start()
    yield stack
    await stack.stop()


def memory(stack: MemoryStack) -> MemoryLog:
    assert isinstance(stack.log, MemoryLog)
    return stack.log


async def recreate(log: MemoryLog, records: int = 0) -> None:
    """Deletes `fences` and makes it anew, with so many records of somebody else's."""
    log.delete(FENCES)
    await log.create(catalogue(POOL, TopicSettings()))
    await append(log, FENCES, *[encode(Fenced(epoch=0, ends=())) for _ in range(records)])


async def append(log: Log, topic: str, *values: bytes, partition: int = 0) -> None:
    appender = await log.appender()
    for value in values:
        await appender.append(topic, partition, value)
    await appender.close()


@pytest.mark.parametrize("records", [0, 500])
async def test_processes_that_read_the_fences_of_before_end_loudly(
    stack: MemoryStack, records: int
) -> None:
    worker = await stack.worker()
    await stack.open_api()
    await recreate(memory(stack), records)
    with pytest.raises(FencesLost):
        await asyncio.wait_for(asyncio.shield(worker.failed), 5)
    with pytest.raises(FencesLost):
        await asyncio.wait_for(asyncio.shield(stack.api.failed), 5)
    assert stack.api.not_ready() == "fences were lost"


async def test_a_topic_that_ends_before_what_was_read_is_another_one(stack: MemoryStack) -> None:
    log = memory(stack)
    await append(log, FENCES, *[encode(Fenced(epoch=0, ends=())) for _ in range(9)])
    tail = await FenceTail.open(log)
    tail._topic_id = ""  # a broker that tells no ids
    log._topics[FENCES].topic_id = ""
    log._topics[FENCES].records[0].clear()
    with pytest.raises(FencesLost):
        await tail.caught_up(0.3)
    await tail.close()


async def test_a_worker_whose_epoch_would_be_lower_than_what_replies_knows_does_not_start(
    stack: MemoryStack,
) -> None:
    log = memory(stack)
    first = await stack.worker(name="first")
    await stack.open_api()
    for index in range(6):
        await stack.read(await stack.ask(f"prompt {index}"))
    await first.stop()
    highest = max(it.epoch for it in stack.events())
    await append(log, REPLIES, encode(Fence(epoch=highest + 100, qs=(str(Q),))))
    log._groups[f"inferlog.{TOPIC}"].committed.setdefault(Q, Committed(0, "1:0,0,0,0"))
    await recreate(log)
    second = await start_only(stack)
    with pytest.raises(FencesLost, match=f"epoch {highest + 100} on replies"):
        await asyncio.wait_for(asyncio.shield(second.failed), 10)


async def start_only(stack: MemoryStack) -> InferenceService:
    waiting = asyncio.create_task(stack.worker(name="second"))
    async with asyncio.timeout(10):
        while len(stack.workers) < 2:
            await asyncio.sleep(0.01)
        while not (waiting.done() or stack.workers[1].failed.done()):
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return stack.workers[1]


async def test_an_owner_that_fences_forgot_is_no_alarm(stack: MemoryStack) -> None:
    log = memory(stack)
    first = await stack.worker(name="first")
    await stack.open_api()
    await stack.read(await stack.ask("before"))
    await first.stop()
    log.trim(Partition(FENCES, 0), len(stack.fences()))
    await stack.worker(name="second")
    request_id = await stack.ask("after")
    assert text_of(await stack.read(request_id)) == scripted_answer("after", 16)


@pytest.mark.parametrize("committed", [10_000, 0])
async def test_a_commit_that_is_off_the_log_is_an_alarm_and_reading_goes_on(
    stack: MemoryStack, committed: int
) -> None:
    log = memory(stack)
    first = await stack.worker(name="first")
    await stack.open_api()
    for index in range(12):
        await stack.read(await stack.ask(f"prompt {index}"))
    await first.stop()
    group = log._groups[f"inferlog.{TOPIC}"]
    (q, at) = max(group.committed.items(), key=lambda it: it[1].offset)
    if committed:
        log.trim(q, at.offset)
    else:
        await append(log, TOPIC, b"lost to retention", partition=q.index)
        log.trim(q, at.offset + 1)
    group.committed[q] = Committed(committed, at.metadata)
    second = await stack.worker(name="second")
    assert second.metrics.log_faults.labels("committed_off_log")._value.get() == 1
    (owned,) = (t.owned[q] for t in second._tiers if q in t.owned)
    assert owned.tracker.next == (await log.end_offsets([q]))[q]
    for index in range(8):
        request_id = await stack.ask(f"after {index}")
        assert text_of(await stack.read(request_id)) == scripted_answer(f"after {index}", 16)


async def test_without_a_commit_reading_begins_at_the_log_start(stack: MemoryStack) -> None:
    await stack.worker(name="early")  # so that the model is known
    await stack.open_api()
    await stack.workers[0].stop()
    ids = {f"prompt {i}": await stack.ask(f"prompt {i}") for i in range(8)}
    log = memory(stack)
    log._groups[f"inferlog.{TOPIC}"].committed.clear()
    worker = await stack.worker(name="late")
    for prompt, request_id in ids.items():
        assert text_of(await stack.read(request_id)) == scripted_answer(prompt, 16)
    assert worker.metrics.log_faults.labels("committed_off_log")._value.get() == 0
