"""What the inner pipeline does when the log fails it: refused, in doubt, away, or cut off."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from types import FrameType

import pytest
import pytest_asyncio

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.publisher import Publisher
from producer_api.submission import Draft, IdempotencyKey
from runtime.metrics import Metrics
from schemas.codec import decode_control
from schemas.ids import parse_request_id
from schemas.replies import Tokens
from schemas.requests import CHAT, Body, Message
from tests.hand_worker import HandWorker
from topics.catalogue import CONTROL, REPLIES, TopicSettings, catalogue, request_topic
from topics.memory import MemoryLog
from topics.memory_clients import MemoryAppender
from topics.ports import Appended, AppendUnknown, Partition

POOL = "faulty"
TOPIC = request_topic(POOL, "standard")
LIMITS = DEFAULT_LIMITS.__class__(publish_seconds=0.5, claim_lease_seconds=0.3)


class Place:
    """One replica and a worker driven by hand, on a log whose faults are asked for."""

    def __init__(self, log: MemoryLog, worker: HandWorker, api: Pipeline) -> None:
        self.log, self.worker, self.api = log, worker, api

    def draft(self, content: str = "hello") -> Draft:
        body = Body(messages=(Message(role="user", content=content),))
        return Draft(
            tenant="one", tier="standard", model=self.worker.model, endpoint=CHAT, body=body
        )

    def cancelled_ids(self) -> list[str | None]:
        records = self.log.records(Partition(CONTROL, 0))
        return [decode_control(it.value).request_id for it in records]

    async def until_cancelled(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while len(set(self.cancelled_ids())) < count:
                await asyncio.sleep(0.02)


class FrozenLog(MemoryLog):
    """While it is away nobody is refused: questions wait for an answer, as sockets that stay open do."""

    async def _asked(self) -> None:
        await self.running.wait()


@pytest_asyncio.fixture(params=[MemoryLog])
async def place(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    monkeypatch.setattr("producer_api.reply_router.BEHIND_SECONDS", 0.05)
    monkeypatch.setattr("producer_api.reply_router.SILENT_SECONDS", 0.5)
    monkeypatch.setattr("producer_api.publisher.TROUBLE_SECONDS", 1.0)
    log: MemoryLog = request.param()
    await log.create(catalogue(POOL, TopicSettings()))
    worker = await HandWorker(log, POOL, "model").start()
    api = Pipeline(log, LIMITS, Metrics())
    await api.start()
    yield Place(log, worker, api)
    log.start()
    await api.stop()
    await worker.close()


async def refused(call: object, code: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await asyncio.wait_for(call, 5.0)  # type: ignore[arg-type]
    assert caught.value.code == code
    return caught.value


async def text_of(place: Place, request_id: str) -> str:
    """What a stream opened now gives, to its end."""
    stream = await place.api.open("one", request_id)
    found: list[Visible] = []
    async with asyncio.timeout(5):
        while not (found and is_terminal(found[-1])):
            found += await stream.next(1.0)
    await stream.close()
    return "".join(it.text for it in found if isinstance(it, Tokens))


async def test_a_refused_append_is_unavailable_and_the_next_request_goes_through(
    place: Place,
) -> None:
    fault = place.log.inject("refused", topic=TOPIC)
    await refused(place.api.submit(place.draft()), "unavailable")
    assert fault.fired
    submission = await place.api.submit(place.draft())
    assert (await place.worker.take()).request.id == submission.request_id
    await submission.stream.close()


@pytest.mark.parametrize("kind", ["ack_lost", "append_lost", "append_late"])
async def test_a_request_in_doubt_is_told_so_and_cancelled(place: Place, kind: str) -> None:
    fault = place.log.inject(kind, topic=TOPIC)  # type: ignore[arg-type]
    refusal = await refused(place.api.submit(place.draft()), "outcome_unknown")
    assert fault.fired
    assert refusal.retry_after_seconds is not None
    await place.until_cancelled()
    submission = await place.api.submit(place.draft())
    assert submission.request_id not in place.cancelled_ids()
    await submission.stream.close()


async def test_a_request_that_fails_is_freed_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector of cycles finds what is old but once an hour (`runtime/garbage.py`)."""

    def failing(*_: object, **__: object) -> "asyncio.Future[Appended]":
        ack = asyncio.get_running_loop().create_future()
        ack.set_exception(AppendUnknown("no ack"))
        return ack

    def publishing() -> int:
        frames = [it for it in gc.get_objects() if isinstance(it, FrameType)]
        return sum(it.f_code is Publisher.publish.__code__ for it in frames)

    logging.disable(logging.CRITICAL)  # pytest keeps what is logged, errors included
    gc.disable()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(MemoryAppender, "append", failing)
            with contextlib.suppress(Refusal):
                await place.api.submit(place.draft())
        assert not publishing()
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


async def test_a_request_whose_accepted_is_refused_is_in_doubt_as_it_runs(place: Place) -> None:
    fault = place.log.inject("refused", topic=REPLIES)
    await refused(place.api.submit(place.draft()), "outcome_unknown")
    assert fault.fired
    taken = await place.worker.take()
    await place.until_cancelled()
    assert place.cancelled_ids() == [taken.request.id]


async def test_with_a_key_nothing_is_cancelled_and_a_retry_finds_it(place: Place) -> None:
    fault = place.log.inject("ack_lost", topic=TOPIC)
    wanted = IdempotencyKey("k", "f", attach=True)
    await refused(place.api.submit(place.draft(), idempotency=wanted), "outcome_unknown")
    assert fault.fired
    taken = await place.worker.take()
    await place.worker.answer(taken, ["one ", "two "])
    again = await place.api.submit(place.draft(), idempotency=wanted)
    assert (again.outcome, again.request_id) == ("replayed", taken.request.id)
    assert place.cancelled_ids() == []
    await again.stream.close()


async def test_with_a_key_what_never_arrived_is_published_after_the_lease(place: Place) -> None:
    fault = place.log.inject("append_lost", topic=TOPIC)
    lost = place.log.inject("append_lost", topic=REPLIES)
    wanted = IdempotencyKey("k", "f")
    await refused(place.api.submit(place.draft(), idempotency=wanted), "outcome_unknown")
    assert fault.fired
    assert not lost.fired, "the appender was broken before"
    lost.count = 0
    await refused(place.api.submit(place.draft(), idempotency=wanted), "idempotency_in_progress")
    await asyncio.sleep(LIMITS.claim_lease_seconds + 0.1)
    again = await place.api.submit(place.draft(), idempotency=wanted)
    assert again.outcome == "new"
    assert [it.request.id for it in await place.worker.take_all()] == [again.request_id]
    await again.stream.close()


async def test_while_the_broker_is_away_every_answer_comes_in_time(place: Place) -> None:
    place.log.stop()
    calls = [place.api.submit(place.draft()) for _ in range(20)]
    async with asyncio.timeout(3):
        results = await asyncio.gather(*calls, return_exceptions=True)
    codes = {it.code for it in results if isinstance(it, Refusal)}
    assert len(results) == 20
    assert codes <= {"outcome_unknown", "unavailable"}
    await refused(place.api.submit(place.draft()), "unavailable")
    some_id = "01234567-89ab-7000-8000-000000000000"
    with pytest.raises(Refusal):
        await asyncio.wait_for(place.api.status("one", some_id), 3.0)
    place.log.start()
    submission = await place.api.submit(place.draft())
    await submission.stream.close()


both = pytest.mark.parametrize("place", [MemoryLog, FrozenLog], indirect=True)


@both
async def test_a_replica_is_ready_only_while_its_home_partitions_answer(place: Place) -> None:
    await asyncio.sleep(0.7)
    assert place.api.not_ready() is None
    place.log.stop()
    async with asyncio.timeout(3):
        while place.api.not_ready() is None:
            await asyncio.sleep(0.02)
    assert place.api.not_ready() == "the home partitions are not being read"
    place.log.start()
    async with asyncio.timeout(3):
        while place.api.not_ready() is not None:
            await asyncio.sleep(0.02)


async def test_a_replica_that_cannot_publish_is_not_ready_for_a_while(place: Place) -> None:
    place.log.inject("refused", topic=TOPIC)
    await refused(place.api.submit(place.draft()), "unavailable")
    assert place.api.not_ready() == "the log takes no requests"
    submission = await place.api.submit(place.draft())
    assert place.api.not_ready() is None, "it took one"
    await submission.stream.close()
    place.log.inject("refused", topic=TOPIC)
    await refused(place.api.submit(place.draft()), "unavailable")
    await asyncio.sleep(1.1)
    assert place.api.not_ready() is None, "somebody has to find out"
    huge = place.draft("x" * (3 * 1024 * 1024))
    await refused(place.api.submit(huge), "request_too_large")
    assert place.api.not_ready() is None, "one client's mistake is no trouble of the log's"


@both
async def test_who_waits_for_a_log_that_is_away_waits_once_whatever_is_to_be_done(
    place: Place,
) -> None:
    place.log.stop()
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def seconds(idempotency: IdempotencyKey | None) -> float:
        with pytest.raises(Refusal) as caught:
            await place.api.submit(place.draft(), idempotency=idempotency)
        assert caught.value.kind.status == 503
        assert caught.value.retry_after_seconds is not None
        return loop.time() - began_s

    # twenty under one key take turns to claim it
    wanted: list[IdempotencyKey | None] = [None, *[IdempotencyKey("k", "f")] * 20]
    took = await asyncio.gather(*map(seconds, wanted))
    assert max(took) < LIMITS.publish_seconds + 0.4, took


async def test_a_stream_survives_a_broker_that_was_away(place: Place) -> None:
    submission = await place.api.submit(place.draft())
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, "one "))
    place.log.stop()
    found = [it for _ in range(3) for it in await submission.stream.next(0.1)]
    place.log.start()
    await place.worker.say(place.worker.tokens(taken, 1, "two "), place.worker.finished(taken, 2))
    async with asyncio.timeout(5):
        while not (found and is_terminal(found[-1])):
            found += await submission.stream.next(1.0)
    assert "".join(it.text for it in found if isinstance(it, Tokens)) == "one two "
    await submission.stream.close()


async def test_an_answer_whose_beginning_is_gone_is_410_and_no_hang(place: Place) -> None:
    submission = await place.api.submit(place.draft())
    await submission.stream.close()
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, "one "))
    here = Partition(REPLIES, parse_request_id(taken.request.id).reply_partition)
    cut = (await place.log.end_offsets([here]))[here]
    await place.worker.say(place.worker.tokens(taken, 1, "two "), place.worker.finished(taken, 2))
    place.log.trim(here, cut)
    await refused(place.api.open("one", taken.request.id), "result_expired")
    await refused(place.api.status("one", taken.request.id), "result_expired")


async def test_a_tail_that_fell_off_the_log_leaves_no_stream_behind(place: Place) -> None:
    submission = await place.api.submit(place.draft())
    taken = await place.worker.take()
    here = Partition(REPLIES, parse_request_id(taken.request.id).reply_partition)
    place.log.stop()
    accepted = place.log.records(here)[-1]
    last = [place.log.store(accepted) for _ in range(20)][-1]
    place.log.trim(here, last.offset)
    place.log.start()
    await asyncio.sleep(0.3)
    assert place.api.not_ready() is None
    await place.worker.answer(taken, ["one ", "two "])
    found: list[Visible] = []
    async with asyncio.timeout(5):
        while not (found and is_terminal(found[-1])):
            found += await submission.stream.next(1.0)
    assert "".join(it.text for it in found if isinstance(it, Tokens)) == "one two "
    await submission.stream.close()


async def test_a_request_too_large_for_a_record_claims_and_publishes_nothing(
    place: Place,
) -> None:
    huge = place.draft("x" * (3 * 1024 * 1024))
    await refused(place.api.submit(huge), "request_too_large")
    await refused(place.api.submit(huge, idempotency=IdempotencyKey("k", "f")), "request_too_large")
    again = await place.api.submit(place.draft(), idempotency=IdempotencyKey("k", "g"))
    assert again.outcome == "new"
    await again.stream.close()


async def test_a_handler_that_is_cut_off_while_it_publishes_leaves_a_cancel(
    place: Place,
) -> None:
    place.log.inject("ack_delayed", topic=TOPIC, delay_seconds=0.3)
    submitting = asyncio.create_task(place.api.submit(place.draft()))
    taken = await place.worker.take()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    await place.until_cancelled()
    assert place.cancelled_ids() == [taken.request.id]


async def test_a_cancel_that_the_log_cannot_take_now_comes_later(place: Place) -> None:
    submission = await place.api.submit(place.draft())
    place.log.stop()
    place.api.cancel_soon("one", submission.request_id)
    await asyncio.sleep(0.7)
    place.log.start()
    await place.until_cancelled()
    assert set(place.cancelled_ids()) == {submission.request_id}
    await submission.stream.close()
