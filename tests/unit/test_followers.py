"""Reading answers back: how many readers it takes, and that each gets its own, whole, once."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from core.limits import Limits
from core.stream import Visible, is_terminal
from producer_api.followers import Followers, Following
from producer_api.scan_member import Member
from producer_api.shared_scan import SharedScan
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.fences import Acquired, Fenced
from schemas.ids import make_request_id
from schemas.replies import Accepted, Cancelled, Events, Started, Tokens
from schemas.requests import CHAT, RequestInfo
from topics.catalogue import REPLIES, TopicSettings, catalogue
from topics.fence_tail import FENCES, FenceTail
from topics.memory import MemoryAppender, MemoryLog, MemoryTail
from topics.ports import LogError, OffsetOutOfRange

INFO = RequestInfo(endpoint=CHAT, model="m", tier="standard")
LIMITS = Limits()


class CountingLog(MemoryLog):
    """Counts the readers that are open at once, and all that were opened; may fail them."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.most, self.opened = 0, 0, 0
        self.failing: type[LogError] | None = None

    async def tail(self, positions: Any) -> MemoryTail:
        tail = await super().tail(positions)
        if all(it.topic != REPLIES for it in positions):
            return tail
        self.open += 1
        self.opened += 1
        self.most = max(self.most, self.open)
        read, close, open_now = tail.read, tail.close, [True]

        async def read_or_fail(*args: Any, **kwargs: Any) -> Any:
            if self.failing is not None:
                raise self.failing("told to fail")
            return await read(*args, **kwargs)

        async def close_counted() -> None:
            if open_now.pop() if open_now else False:
                self.open -= 1
            await close()

        tail.read = read_or_fail  # type: ignore[method-assign]
        tail.close = close_counted  # type: ignore[method-assign]
        return tail


class Place:
    """Followers of a log in this process, and a hand that writes on it."""

    def __init__(self, log: CountingLog, appender: MemoryAppender, fences: FenceTail) -> None:
        self.log, self._appender, self.fences = log, appender, fences
        self.made: list[Followers] = []
        self._random = 0

    async def acquire(self, q: str, *, end: int, fenced: bool = True) -> None:
        """An A of `q` whose fence lies at `end` of all partitions, and its B."""
        at = await self._fence(Acquired(qs=(q,), incarnation="i", ends=(end,) * 4))
        if fenced:
            await self._fence(Fenced(epoch=at, ends=(end + 1,) * 4))
        await self.fences.caught_up()

    async def _fence(self, record: Acquired | Fenced) -> int:
        return (await self._appender.append(FENCES.topic, FENCES.index, encode(record))).offset

    def parked(self, offset: int) -> Member:
        """Who is to go on from there."""
        member = Member(("one", self.new_id()), 0, LIMITS)
        member.park(offset, None)
        return member

    def followers(self, **limits: int) -> Followers:
        made = Followers(
            self.log,
            self.fences,
            dataclasses.replace(LIMITS, **limits),
            Metrics(),
        )
        self.made.append(made)
        return made

    def new_id(self, partition: int = 0, age_ms: int = 0) -> str:
        self._random += 1
        return make_request_id(int(time.time() * 1000) - age_ms, partition, self._random)

    async def say(self, record: Accepted | Events, partition: int = 0) -> None:
        await self._appender.append(REPLIES, partition, encode(record))

    async def begin(self, request_id: str, partition: int = 0) -> None:
        accepted = Accepted(id=request_id, tenant="one", info=INFO)
        start = Started(**_origin(request_id), starts=1, counts=(0,), info=INFO, worker="w")
        await self.say(accepted, partition)
        await self.say(Events(events=(start,)), partition)

    async def go_on(self, request_id: str, begin: int, end: int, partition: int = 0) -> None:
        for seq in range(begin, end):
            event = Tokens(**_origin(request_id), seq=seq, token_ids=(seq,), text=f"{seq} ")
            await self.say(Events(events=(event,)), partition)

    async def finish(self, request_id: str, count: int, partition: int = 0) -> None:
        event = Cancelled(**_origin(request_id), counts=(count,))
        await self.say(Events(events=(event,)), partition)

    async def answer(self, request_id: str, count: int, partition: int = 0) -> None:
        await self.begin(request_id, partition)
        await self.go_on(request_id, 0, count, partition)
        await self.finish(request_id, count, partition)


def _origin(request_id: str) -> dict[str, Any]:
    return {"id": request_id, "tenant": "one", "q": "q/0", "offset": 0, "epoch": 0}


@pytest_asyncio.fixture
async def place() -> AsyncIterator[Place]:
    log = CountingLog()
    await log.create(catalogue("default", TopicSettings()))
    appender = await log.appender()
    fences = await FenceTail.open(log)
    made = Place(log, appender, fences)
    yield made
    for followers in made.made:
        await followers.close()
    await fences.close()
    await appender.close()


async def drained(following: Following, pause: float = 0.0) -> list[Visible]:
    found: list[Visible] = []
    async with asyncio.timeout(20):
        while not (found and is_terminal(found[-1])):
            found += await following.read(0.5)
            await asyncio.sleep(pause)
    following.close()
    return found


def text_of(events: list[Visible]) -> str:
    return "".join(it.text for it in events if isinstance(it, Tokens))


def words(count: int, begin: int = 0) -> str:
    return "".join(f"{seq} " for seq in range(begin, count))


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


async def test_two_hundred_that_resume_at_once_share_a_few_readers(place: Place) -> None:
    ids = [place.new_id(number % 4, age_ms=17 * number % 900) for number in range(200)]
    for number, it in enumerate(ids):
        await place.begin(it, number % 4)
        await place.go_on(it, 0, 5, number % 4)
    followers = place.followers()
    followings = [followers.follow(("one", it)) for it in ids]
    reading = [asyncio.create_task(drained(it)) for it in followings]
    await until(lambda: all(it.at_end for it in followings))
    for number, it in enumerate(ids):
        await place.go_on(it, 5, 8, number % 4)
        await place.finish(it, 8, number % 4)
    for events in await asyncio.gather(*reading):
        assert text_of(events) == words(8)
    assert place.log.most <= 4 * LIMITS.scans_per_partition
    assert place.log.opened <= 12
    await until(lambda: place.log.open == 0)


async def test_who_comes_later_is_merged_once_it_has_caught_up(place: Place) -> None:
    followers = place.followers()
    ids = [place.new_id() for _ in range(6)]
    for it in ids:
        await place.begin(it)
        await place.go_on(it, 0, 2)
    followings = []
    for it in ids:
        followings.append(followers.follow(("one", it)))
        await until(lambda: all(it.at_end for it in followings))
    await until(lambda: place.log.open == 1)
    for it in ids:
        await place.go_on(it, 2, 5)
        await place.finish(it, 5)
    for following in followings:
        assert text_of(await drained(following)) == words(5)


async def test_the_same_request_many_times_is_told_to_each(place: Place) -> None:
    followers = place.followers()
    it = place.new_id()
    await place.begin(it)
    await place.go_on(it, 0, 4)
    early = [followers.follow(("one", it)) for _ in range(5)]
    await until(lambda: all(one.at_end for one in early))
    late = [followers.follow(("one", it)) for _ in range(5)]
    reading = [asyncio.create_task(drained(one)) for one in (*early, *late)]
    await asyncio.sleep(0.05)
    await place.go_on(it, 4, 9)
    await place.finish(it, 9)
    for events in await asyncio.gather(*reading):
        assert text_of(events) == words(9)
        assert len(events) == 12


async def test_who_leaves_takes_nothing_from_the_others(place: Place) -> None:
    followers = place.followers()
    it = place.new_id()
    await place.begin(it)
    staying, leaving = followers.follow(("one", it)), followers.follow(("one", it))
    await until(lambda: staying.at_end)
    leaving.close()
    leaving.close()
    await place.go_on(it, 0, 3)
    await place.finish(it, 3)
    assert text_of(await drained(staying)) == words(3)


@pytest.mark.parametrize("skip", [0, 1, 2, 5, 12])
async def test_what_was_delivered_before_is_passed_over(place: Place, skip: int) -> None:
    it = place.new_id()
    await place.answer(it, 10)
    events = await drained(place.followers().follow(("one", it), skip=skip))
    assert len(events) == 13 - skip


async def test_a_slow_reader_holds_a_bounded_box_and_loses_nothing(place: Place) -> None:
    followers = place.followers(mailbox_events=8)
    it, other = place.new_id(), place.new_id()
    await place.begin(it)
    await place.begin(other)
    await place.go_on(it, 0, 100)
    slow, quick = followers.follow(("one", it)), followers.follow(("one", other))
    await place.go_on(other, 0, 50)
    await place.finish(other, 50)
    assert text_of(await drained(quick)) == words(50), "nobody waits for a slow one for long"
    assert len(slow._member.box._events or ()) <= 9
    reading = asyncio.create_task(drained(slow, pause=0.002))
    await place.go_on(it, 100, 150)
    await place.finish(it, 150)
    assert text_of(await reading) == words(150)


async def test_a_parked_reader_does_not_read_from_the_beginning_again(place: Place) -> None:
    followers = place.followers(mailbox_events=8)
    it = place.new_id()
    await place.begin(it)
    await place.go_on(it, 0, 40)
    following = followers.follow(("one", it))
    await until(lambda: following._member.go_on_from is not None)
    parked_at = following._member.go_on_from
    assert parked_at is not None
    assert parked_at > 8
    await place.finish(it, 40)
    assert text_of(await drained(following)) == words(40)


async def test_two_readers_of_one_request_parked_at_different_places(place: Place) -> None:
    followers = place.followers(mailbox_events=8)
    it = place.new_id()
    await place.begin(it)
    await place.go_on(it, 0, 30)
    first, second = followers.follow(("one", it)), followers.follow(("one", it))
    some = await first.read(1.0)
    await asyncio.sleep(0.7)
    reading = [asyncio.create_task(drained(one)) for one in (first, second)]
    await place.go_on(it, 30, 60)
    await place.finish(it, 60)
    events = [some + (await reading[0]), await reading[1]]
    assert [text_of(one) for one in events] == [words(60)] * 2


async def test_who_was_parked_is_not_let_into_the_run_up_of_a_later_reader(place: Place) -> None:
    """A reader begins before its place where a fence may lie, with the epochs of its place: what was
    valid on the way there it drops, and who needs that would be told `interrupted`."""
    await place.acquire("q/0", end=0)
    await place.go_on(place.new_id(), 0, 30)
    await place.acquire("q/1", end=4, fenced=False)
    await place.acquire("q/0", end=30)
    early, late, later = (place.parked(offset) for offset in (12, 31, 32))
    seen = []

    def opened(scan: SharedScan) -> None:
        seen.append((scan.position, scan.admits(early), scan.admits(later)))
        scan.leave(late)

    scan = SharedScan(place.log, place.fences, 0, opened)
    scan.admit(late)
    await scan.run()
    assert seen == [(4, False, True)]


async def test_readers_of_a_partition_are_bounded_and_who_waits_gets_its_turn(
    place: Place,
) -> None:
    followers = place.followers(scans_per_partition=1)
    ids = [place.new_id(age_ms=1000 * number) for number in range(5)]
    for it in ids:
        await place.answer(it, 4)
    reading = []
    for it in ids:  # each older than the last: none can join one that has begun
        reading.append(asyncio.create_task(drained(followers.follow(("one", it)))))
        await asyncio.sleep(0.02)
    for events in await asyncio.gather(*reading):
        assert text_of(events) == words(4)
    assert place.log.most == 1


async def test_scans_of_a_tenant_that_have_not_caught_up_are_bounded(place: Place) -> None:
    followers = place.followers(scans_per_tenant=1)
    ids = [place.new_id(partition) for partition in range(4)]
    for partition, it in enumerate(ids):
        await place.answer(it, 4, partition)
    results = await asyncio.gather(*[drained(followers.follow(("one", it))) for it in ids])
    assert [text_of(events) for events in results] == [words(4)] * 4
    assert place.log.most == 1


async def test_one_tenants_wait_is_not_anothers(place: Place) -> None:
    followers = place.followers(scans_per_tenant=1)
    mine, theirs = place.new_id(0), place.new_id(1)
    await place.answer(theirs, 2, 1)
    for tenant, it in (("two", mine), ("one", theirs)):
        followers.follow((tenant, it))
    await until(lambda: place.log.most == 2)


async def test_a_request_that_is_not_there_is_known_not_to_be_at_the_end(place: Place) -> None:
    await place.answer(place.new_id(), 3)
    following = place.followers().follow(("one", place.new_id()))
    assert await following.read(2.0) == []
    assert following.at_end


async def test_another_tenants_request_is_another(place: Place) -> None:
    it = place.new_id()
    await place.answer(it, 3)
    following = place.followers().follow(("two", it))
    assert await following.read(2.0) == []
    assert following.at_end


async def test_a_beginning_that_retention_took_is_told(place: Place) -> None:
    it = place.new_id()
    await place.go_on(it, 3, 6)
    following = place.followers().follow(("one", it))
    await until(lambda: following.gap)
    assert await following.read(0.1) == []


@pytest.mark.parametrize("error", [LogError, OffsetOutOfRange])
async def test_when_a_reader_fails_all_who_share_it_are_told(
    place: Place, error: type[LogError]
) -> None:
    followers = place.followers()
    ids = [place.new_id() for _ in range(3)]
    for it in ids:
        await place.begin(it)
    place.log.failing = error
    for following in [followers.follow(("one", it)) for it in ids]:
        with pytest.raises(LogError):
            await following.read(5.0)
    place.log.failing = None
    await place.answer(after := place.new_id(), 2)
    assert text_of(await drained(followers.follow(("one", after)))) == words(2)


async def test_nothing_is_left_when_all_have_gone(place: Place) -> None:
    followers = place.followers()
    followings = [followers.follow(("one", place.new_id(number % 4))) for number in range(40)]
    await asyncio.sleep(0.02)
    for following in followings:
        following.close()
    await until(lambda: place.log.open == 0 and not followers._tasks)
    assert not any(followers._scans.values())
    assert not any(followers._waiting.values())


async def test_who_leaves_at_once_leaves_nothing_behind(place: Place) -> None:
    followers = place.followers()
    followers.follow(("one", place.new_id())).close()
    await until(lambda: not followers._tasks)
    assert not any(followers._scans.values())
    await place.answer(it := place.new_id(), 2)
    assert text_of(await drained(followers.follow(("one", it)))) == words(2)


async def test_an_end_is_one_taken_after_the_question(place: Place) -> None:
    """What was on the log before the question is always in the answer, also if a scan was under way."""
    followers = place.followers()
    for _ in range(30):
        it = place.new_id()
        await place.begin(it)
        await place.go_on(it, 0, 2)
        following = followers.follow(("one", it))
        found: list[Visible] = []
        while not following.at_end:
            found += await following.read(1.0)
        found += await following.read(0.0)
        assert text_of(found) == words(2)
