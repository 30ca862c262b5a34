"""Streams that read the log back take turns with each other and with status reads, per tenant."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from core.limits import DEFAULT_LIMITS
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.scan_member import Member
from producer_api.streams import ReplyStream
from producer_api.submission import Draft
from runtime.metrics import Metrics
from schemas.replies import Tokens
from schemas.requests import CHAT, Body, Message
from tests.hand_worker import HandWorker
from topics.catalogue import TopicSettings, catalogue
from topics.memory import MemoryLog

POOL = "scans"
WORDS = [f"{number} " for number in range(20)]


@pytest_asyncio.fixture
async def api() -> AsyncIterator[tuple[Pipeline, HandWorker]]:
    """One replica whose mailboxes hold hardly anything: its streams read on from the log."""
    log = MemoryLog()
    await log.create(catalogue(POOL, TopicSettings()))
    worker = await HandWorker(log, POOL, "scanned").start()
    limits = dataclasses.replace(DEFAULT_LIMITS, mailbox_events=1)
    pipeline = Pipeline(log, limits, Metrics())
    await pipeline.start()
    yield pipeline, worker
    await pipeline.stop()
    await worker.close()


def draft() -> Draft:
    return Draft(
        tenant="a",
        tier="standard",
        model="scanned",
        endpoint=CHAT,
        body=Body(messages=(Message(role="user", content="hello"),)),
    )


async def drained(stream: ReplyStream) -> str:
    found: list[Visible] = []
    async with asyncio.timeout(10):
        while not (found and is_terminal(found[-1])):
            found += await stream.next(1.0)
    return "".join(it.text for it in found if isinstance(it, Tokens))


class Held:
    """No reader begins for a tenant until it is let go, as if others had all its places."""

    def __init__(self, pipeline: Pipeline, tenant: str) -> None:
        self._followers = cast("Any", pipeline._retrieval._followers)
        self._tenant = tenant
        self._choose = self._followers._group
        self._followers._group = self._group

    def _group(self, waiting: list[Member]) -> list[Member]:
        return [it for it in self._choose(waiting) if it.key[0] != self._tenant]

    def let_go(self) -> None:
        self._followers._group = self._choose
        self._followers._begin_scans()


async def no_reader_is_left(pipeline: Pipeline) -> None:
    async with asyncio.timeout(2):
        while pipeline._retrieval._followers._tasks:
            await asyncio.sleep(0.01)


async def answered(pipeline: Pipeline, worker: HandWorker) -> tuple[str, ReplyStream]:
    submission = await pipeline.submit(draft())
    await worker.answer(await worker.take(), WORDS)
    return submission.request_id, submission.stream


async def test_opening_a_stream_waits_for_a_place_and_leaves_none_taken(
    api: tuple[Pipeline, HandWorker],
) -> None:
    pipeline, worker = api
    request_id, first = await answered(pipeline, worker)
    holding = Held(pipeline, "a")
    opening = asyncio.create_task(pipeline.open("a", request_id))
    asking = asyncio.create_task(pipeline.status("a", request_id))
    await asyncio.sleep(0.3)
    assert not opening.done()
    assert not asking.done()
    # another tenant is not kept waiting
    with pytest.raises(Exception, match="There is no request"):
        await pipeline.status("b", request_id)
    holding.let_go()
    stream = await asyncio.wait_for(opening, 5.0)
    assert (await asyncio.wait_for(asking, 5.0)).state == "completed"
    assert await drained(stream) == "".join(WORDS)
    for it in (stream, first):
        await it.close()
    await no_reader_is_left(pipeline)


async def test_a_stream_that_lost_its_mailbox_waits_for_a_place_and_reads_on(
    api: tuple[Pipeline, HandWorker],
) -> None:
    pipeline, worker = api
    _, stream = await answered(pipeline, worker)
    await asyncio.sleep(0.2)  # the tail has filled its mailbox
    assert pipeline.metrics.mailbox_drops._value.get() == 1
    holding = Held(pipeline, "a")
    assert await stream.next(0.3) == []
    stream.abandon()  # whoever waits for a place still hears that its client left
    with pytest.raises(Exception, match="closed its connection"):
        await stream.next(1.0)
    stream._abandoned = False
    holding.let_go()
    assert await drained(stream) == "".join(WORDS)
    await stream.close()


async def test_a_client_that_takes_its_time_holds_no_place(
    api: tuple[Pipeline, HandWorker],
) -> None:
    pipeline, worker = api
    request_id, first = await answered(pipeline, worker)
    slow = [await pipeline.open("a", request_id) for _ in range(5)]
    await no_reader_is_left(pipeline)
    assert (await asyncio.wait_for(pipeline.status("a", request_id), 2.0)).state == "completed"
    assert [await drained(stream) for stream in slow] == ["".join(WORDS)] * 5
    for it in (*slow, first):
        await it.close()


async def test_a_stream_that_has_caught_up_needs_no_place(
    api: tuple[Pipeline, HandWorker],
) -> None:
    pipeline, worker = api
    submission = await pipeline.submit(draft())
    taken = await worker.take()
    await worker.say(worker.started(taken))
    late = await pipeline.open("a", submission.request_id)
    while await late.next(0.2):
        pass
    holding = Held(pipeline, "a")
    await worker.say(worker.tokens(taken, 0, "now"), worker.finished(taken, 1))
    assert await drained(late) == "now"
    holding.let_go()
    for it in (late, submission.stream):
        await it.close()
