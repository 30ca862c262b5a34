"""What a real worker makes of requests that died before, on the log in memory."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from consumers.inference import suspects, worker
from consumers.inference.engine.replaced import ReplacedEngine
from consumers.inference.intake import read_request
from consumers.inference.ownership import Ownership
from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.limits import Limits
from schemas.codec import decode_dead_letter, decode_reply, decode_usage, encode
from schemas.envelope import REQUEST_INFO, START_SECONDS, request_headers
from schemas.fences import Acquired, Fenced
from schemas.ids import make_request_id
from schemas.operations import Control, DeadLetter
from schemas.replies import (
    AnyEvent,
    Cancelled,
    Events,
    Expired,
    Failed,
    Fence,
    Finished,
    Released,
    Started,
    Tokens,
)
from schemas.requests import COMPLETIONS, Body, Deadlines, Request, RequestInfo
from topics.catalogue import (
    CONTROL,
    DEAD_LETTERS,
    FENCES,
    REPLIES,
    USAGE,
    TopicSettings,
    catalogue,
    request_topic,
)
from topics.memory import MemoryLog
from topics.ports import Appended, Committed, Headers, Partition

POOL = "suspects"
TOPIC = request_topic(POOL, "standard")
Q = Partition(TOPIC, 0)
SLOWLY = "tokens_per_second=2"
COUNTS = TopicSettings(request_partitions=1, reply_partitions=1, usage_partitions=1)


class History:
    """The log as owners left it that are gone, and what a worker adds to it."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.request = Request(
            id=make_request_id(int(time.time() * 1000), 0, secrets.randbits(62)),
            tenant="acme",
            tier="standard",
            model="scripted",
            endpoint=COMPLETIONS,
            body=Body(prompt="one two", max_tokens=4),
        )
        self.offset = -1
        self._before = 0

    async def append(self, topic: str, value: bytes, headers: Headers = ()) -> Appended:
        appender = await self.log.appender()
        return await appender.append(topic, 0, value, headers=headers)

    def headers(self) -> Headers:
        it = self.request
        own_s = it.deadlines.own_start_seconds()
        return request_headers(it.id, it.tenant, 0, info=encode(it.info()), start_seconds=own_s)

    async def publish(self, value: bytes | None = None, headers: Headers | None = None) -> None:
        said = self.headers() if headers is None else headers
        self.offset = (await self.append(TOPIC, value or encode(self.request), said)).offset

    async def own(self) -> int:
        """Another owner, of an incarnation of its own."""
        a = Acquired(qs=(str(Q),), incarnation=secrets.token_hex(4), ends=self._ends())
        epoch = (await self.append(FENCES, encode(a))).offset
        await self.append(REPLIES, encode(Fence(epoch=epoch, qs=(str(Q),))))
        await self.append(FENCES, encode(Fenced(epoch=epoch, ends=self._ends())))
        return epoch

    def _ends(self) -> tuple[int, ...]:
        return (len(self.log.records(Partition(REPLIES, 0))),)

    def fields(self, epoch: int) -> dict[str, Any]:
        it = self.request
        return {
            "id": it.id,
            "tenant": it.tenant,
            "q": str(Q),
            "offset": self.offset,
            "epoch": epoch,
        }

    async def die(self, starts: int, *, had: int = 0, tokens: int = 0) -> None:
        """An owner starts the request, brings some tokens, and is never heard of again."""
        epoch = await self.own()
        it = Started(
            **self.fields(epoch),
            starts=starts,
            counts=(had,),
            info=self.request.info(),
            worker=f"w{starts}",
        )
        said: list[AnyEvent] = [it]
        said += [
            Tokens(**self.fields(epoch), seq=seq, token_ids=(seq,), text=f"{mark()}.{seq} ")
            for seq in range(had, had + tokens)
        ]
        await self.append(REPLIES, encode(Events(events=tuple(said))))
        self._before = len(self.events())

    def events(self) -> list[AnyEvent]:
        records = [decode_reply(it.value) for it in self.log.records(Partition(REPLIES, 0))]
        return [event for it in records if isinstance(it, Events) for event in it.events]

    def news(self) -> list[AnyEvent]:
        """What was said since the last owner died."""
        return self.events()[self._before :]

    def letters(self) -> list[DeadLetter]:
        return [decode_dead_letter(it.value) for it in self.log.records(Partition(DEAD_LETTERS, 0))]

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.01)

    async def moved_on(self) -> Committed:
        """The commit behind the request: its partition has moved on."""
        group = f"inferlog.{TOPIC}"
        async with asyncio.timeout(10):
            while True:
                at = (await self.log.committed(group, [Q])).get(Q)
                if at is not None and at.offset == self.offset + 1:
                    return at
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def served(self, *options: str) -> AsyncIterator[InferenceService]:
        settings = WorkerSettings(
            pool=POOL,
            tiers=("standard",),
            engine="scripted",
            engine_option=options,
            worker_id="now",
            metrics_port=0,
            limits=Limits(alone_hold_seconds=0.2, clock_skew_seconds=0.1),
        )
        service = InferenceService(settings, log=self.log)
        await service.start()
        try:
            yield service
        finally:
            await service.stop(drain=False)


def mark() -> str:
    return "8ab63e"


@pytest_asyncio.fixture
async def history() -> History:
    log = MemoryLog()
    await log.create(catalogue(POOL, COUNTS))
    return History(log)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, history: History) -> list[int]:
    """How many `Started` this worker had on the log whenever a body was parsed."""
    seen: list[int] = []

    def spy(*arguments: Any) -> Any:
        seen.append(sum(1 for it in history.news() if isinstance(it, Started)))
        return read_request(*arguments)

    monkeypatch.setattr(worker, "read_request", spy)
    monkeypatch.setattr(suspects, "read_request", spy)
    return seen


async def test_a_body_is_parsed_once_its_start_is_on_the_log(
    history: History, parsed: list[int]
) -> None:
    await history.publish()
    async with history.served():
        await history.moved_on()
    assert parsed == [1], "a suspect, though nobody had started it: its headers tell enough"
    (start, *_, last) = history.news()
    assert isinstance(start, Started)
    assert (start.starts, start.info) == (1, history.request.info())
    assert isinstance(last, Finished)


async def test_new_work_is_parsed_at_once_and_its_start_not_waited_for(
    history: History, parsed: list[int]
) -> None:
    async with history.served() as service:
        await history.until(service.owns_all)
        await history.publish()
        await history.moved_on()
    assert parsed == [0]


@pytest.mark.parametrize("missing", ["inferlog-request-id", "inferlog-tenant", REQUEST_INFO])
async def test_without_a_header_the_body_has_the_word(
    history: History, parsed: list[int], missing: str
) -> None:
    await history.publish(headers=tuple(it for it in history.headers() if it[0] != missing))
    async with history.served():
        await history.moved_on()
    assert parsed == [0]
    assert isinstance(history.news()[-1], Finished)


@pytest.mark.parametrize("nonsense", [b"soon", b"-1", b"inf", b"nan", b""])
async def test_a_start_deadline_that_is_none_leaves_the_word_to_the_body(
    history: History, parsed: list[int], nonsense: bytes
) -> None:
    await history.publish(headers=(*history.headers(), (START_SECONDS, nonsense)))
    async with history.served():
        await history.moved_on()
    assert parsed == [0]
    assert isinstance(history.news()[-1], Finished)


async def test_its_own_start_deadline_holds_for_whoever_takes_it_over(history: History) -> None:
    short = Deadlines(start_seconds=0.05)
    history.request = msgspec.structs.replace(history.request, deadlines=short)
    await history.publish()
    await asyncio.sleep(0.1)
    async with history.served():
        await history.moved_on()
    (end,) = history.news()
    assert isinstance(end, Expired)
    assert end.deadline == "start"


async def test_what_an_older_owner_said_stands_in_for_the_headers(
    history: History, parsed: list[int]
) -> None:
    await history.publish(headers=())
    await history.die(1)
    async with history.served():
        await history.moved_on()
    assert parsed == [1]
    start = history.news()[0]
    assert isinstance(start, Started)
    assert start.starts == 2


async def test_a_body_that_cannot_be_read_is_parked_behind_its_start(history: History) -> None:
    await history.publish(b"{torn")
    async with history.served():
        await history.moved_on()
    start, failed = history.news()
    assert isinstance(start, Started)
    assert isinstance(failed, Failed)
    assert failed.error.code == "undecodable"
    (letter,) = history.letters()
    assert (letter.reason, letter.value) == ("undecodable", b"{torn")


async def test_headers_that_tell_of_another_request_are_parked(history: History) -> None:
    it = history.request
    other = RequestInfo(endpoint=it.endpoint, model="other", tier=it.tier)
    await history.publish(headers=request_headers(it.id, it.tenant, 0, info=encode(other)))
    async with history.served():
        await history.moved_on()
    assert [letter.reason for letter in history.letters()] == ["invalid_request"]
    assert isinstance(history.news()[-1], Failed)


async def test_what_was_cancelled_before_its_record_was_there_ends_at_once(
    history: History,
) -> None:
    """Its publishing was in doubt: its client gave up, and the broker appended it all the same."""
    it = history.request
    await history.append(CONTROL, encode(Control(kind="cancel", tenant="acme", request_id=it.id)))
    await asyncio.sleep(0.3)  # more than clocks may differ
    await history.publish()
    async with history.served(SLOWLY):
        await history.moved_on()
    end = history.news()[-1]
    assert isinstance(end, Cancelled)
    assert sum(end.counts) <= 1


async def test_so_it_is_if_the_record_comes_to_a_worker_that_came_after_the_cancel(
    history: History,
) -> None:
    it = history.request
    await history.append(CONTROL, encode(Control(kind="cancel", tenant="acme", request_id=it.id)))
    async with history.served(SLOWLY) as service:
        await history.until(service.owns_all)
        await asyncio.sleep(0.3)
        await history.publish()
        await history.moved_on()
    end = history.news()[-1]
    assert isinstance(end, Cancelled)
    assert sum(end.counts) <= 1


async def test_what_was_begun_and_cancelled_is_not_gone_on_with(history: History) -> None:
    it = history.request
    await history.append(CONTROL, encode(Control(kind="cancel", tenant="acme", request_id=it.id)))
    await asyncio.sleep(0.3)
    await history.publish()
    await history.die(1, tokens=2)
    async with history.served(SLOWLY):
        await history.moved_on()
    end = history.news()[-1]
    assert isinstance(end, Cancelled)
    assert sum(end.counts) <= 3


async def test_after_so_many_deaths_it_is_parked_unread_with_its_history(
    history: History, parsed: list[int]
) -> None:
    await history.publish()
    await history.die(1, tokens=2)
    await history.die(2, had=2)
    await history.die(3, had=2)
    async with history.served():
        await history.moved_on()
    assert parsed == [], "the body may be what kills"
    (failed,) = history.news()
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.counts) == ("poison", (2,))
    (letter,) = history.letters()
    assert (letter.reason, letter.value) == ("poison", encode(history.request))
    assert (letter.request_id, letter.tenant) == (history.request.id, "acme")
    assert [(it.starts, it.worker) for it in letter.starts] == [(1, "w1"), (2, "w2"), (3, "w3")]
    (used,) = [decode_usage(it.value) for it in history.log.records(Partition(USAGE, 0))]
    assert (used.outcome, used.completion_tokens) == ("failed", 2)


async def test_the_letter_comes_first_as_nobody_would_write_it_afterwards(
    history: History,
) -> None:
    await history.publish()
    for number in (1, 2, 3):
        await history.die(number)
    late = history.log.inject("ack_delayed", topic=DEAD_LETTERS, delay_seconds=0.5)
    async with history.served():
        await history.until(lambda: late.fired)
        await asyncio.sleep(0.2)
        assert history.news() == [], "not before the letter's ack"
        await history.moved_on()
    assert len(history.letters()) == 1


async def test_one_death_fewer_and_it_runs_and_is_innocent(history: History) -> None:
    await history.publish()
    await history.die(1)
    await history.die(2)
    async with history.served():
        await history.moved_on()
    start, *_, last = history.news()
    assert isinstance(start, Started)
    assert (start.starts, type(last)) == (3, Finished)
    assert history.letters() == []


async def test_penalties_are_found_in_the_body_and_the_answer_not_spliced(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an engine that cannot count what another run has said
    monkeypatch.setattr(ReplacedEngine, "resumes", frozenset())
    it = history.request
    body = Body(prompt="one two", max_tokens=4, presence_penalty=0.5)
    history.request = Request(
        id=it.id, tenant=it.tenant, tier=it.tier, model=it.model, endpoint=it.endpoint, body=body
    )
    await history.publish()
    await history.die(1, tokens=2)
    async with history.served():
        await history.moved_on()
    start, failed = history.news()
    assert isinstance(failed, Failed)
    assert failed.error.code == "interrupted"
    assert isinstance(start, Started)


async def test_what_runs_when_its_partition_is_dropped_is_released(history: History) -> None:
    async with history.served("fail=stall:two") as service:
        await history.until(service.owns_all)
        await history.publish()
        await history.until(history.events)
        assert service.worker is not None
        service.worker.tiers["standard"].end_epochs("because of a test")
        await history.until(lambda: len(history.events()) >= 3)
        first, gone, again = history.events()[:3]
        assert isinstance(first, Started)
        assert isinstance(gone, Released)
        assert isinstance(again, Started)
        assert (gone.epoch, again.starts) == (first.epoch, 1)
        assert again.epoch > first.epoch


async def test_what_ran_on_an_engine_that_died_is_not_handed_over(history: History) -> None:
    async with history.served("fail=stall:two") as service:
        await history.until(service.owns_all)
        await history.publish()
        await history.until(history.events)
        assert service.worker is not None
        service.worker.on_capacity(0)
        service.worker.tiers["standard"].end_epochs("the engine died")
        await history.until(service.owns_all)
    assert [type(it) for it in history.events()] == [Started]


async def test_poison_that_kills_engines_is_parked_by_the_worker_that_outlives_them(
    history: History,
) -> None:
    async with history.served("fail=die_on:two") as service:
        await history.until(service.owns_all)
        await history.publish()
        await history.until(history.letters)
        await history.moved_on()
        assert not service.failed.done()
    events = history.events()
    assert [it.starts for it in events if isinstance(it, Started)] == [1, 2, 3]
    assert isinstance(events[-1], Failed)
    assert events[-1].error.code == "poison"
    (letter,) = history.letters()
    assert (letter.reason, len(letter.starts)) == ("poison", 3)


GARBAGE = (b"hello", None, b"[]", b"{}", b'{"record":7}', b"\xff\xfe")


async def test_what_is_no_reply_does_not_keep_a_partition_from_being_taken_over(
    history: History,
) -> None:
    """A console producer's line, or a tombstone: it would for as long as `replies` keeps it."""
    await history.publish()
    await history.die(1, tokens=2)
    for value in GARBAGE:
        await history.append(REPLIES, value)  # type: ignore[arg-type]  # as any producer can
    async with history.served():
        at = await history.moved_on()
    assert at.offset == history.offset + 1


async def test_what_a_newer_worker_may_have_said_does(history: History) -> None:
    await history.publish()
    await history.die(1)
    await history.append(REPLIES, b'{"record":"events","v":2}')
    async with history.served() as service:
        await asyncio.sleep(1.0)
        assert not service.owns_all()
        assert not service.failed.done()


async def test_a_take_over_that_ends_by_a_fault_of_ours_ends_the_worker(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unseen, the worker would live on, healthy, and own nothing."""

    async def acquire(*_: object) -> None:
        raise IndexError("a fault of ours")

    monkeypatch.setattr(Ownership, "acquire", acquire)
    async with history.served() as service:
        with pytest.raises(IndexError):
            await asyncio.wait_for(asyncio.shield(service.failed), 5)
