"""From the tail of replies to mailboxes: what is kept, for whom, and for how long."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from core.stream import Key, Visible
from producer_api.mailbox import Mailbox
from producer_api.reply_router import ReplyRouter
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.ids import make_request_id
from schemas.replies import (
    Accepted,
    Cancelled,
    Events,
    Fence,
    ReplyRecord,
    Started,
    TokenLogprob,
    Tokens,
)
from schemas.requests import CHAT, RequestInfo
from topics.catalogue import REPLIES, TopicSettings, catalogue
from topics.fence_tail import FenceTail
from topics.memory import MemoryAppender, MemoryLog
from topics.ports import Partition
from topics.read_size import READ_BYTES_MAX

Q = "requests.default.standard/0"
INFO = RequestInfo(endpoint=CHAT, model="m", tier="standard")
ID = make_request_id(1, 0, 1)
OTHER_ID = make_request_id(1, 0, 2)


class Place:
    """A router of partitions 0 and 2 of a log in this process."""

    def __init__(self, log: MemoryLog, appender: MemoryAppender, router: ReplyRouter) -> None:
        self.log, self.router, self._appender = log, router, appender
        self.metrics = router._metrics

    async def append(self, *records: ReplyRecord | bytes, partition: int = 0) -> None:
        """Appends, and returns once the router has read them."""
        for record in records:
            value = record if isinstance(record, bytes) else encode(record)
            await self._appender.append(REPLIES, partition, value)
        here = Partition(REPLIES, partition)
        end = (await self.log.end_offsets([here]))[here]
        async with asyncio.timeout(5):
            while self.router._tail is None or self.router._tail.position(here) < end:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)

    def watch(self, request_id: str = ID, tenant: str = "one", events_max: int = 100) -> Mailbox:
        box = Mailbox((tenant, request_id), events_max, 10_000)
        self.router.watch(box)
        return box

    def held(self) -> set[Key]:
        """Requests that the readers remember."""
        return {key for reader in self.router._readers.values() for key in reader.states}


@pytest_asyncio.fixture
async def place() -> AsyncIterator[Place]:
    log = MemoryLog()
    await log.create(catalogue("default", TopicSettings()))
    appender = await log.appender()
    fence_tail = await FenceTail.open(log)
    router = ReplyRouter(log, fence_tail, Metrics(), [0, 2])
    await router.start()
    yield Place(log, appender, router)
    await router.close()
    await fence_tail.close()
    await appender.close()


def accepted(request_id: str = ID, tenant: str = "one") -> Accepted:
    return Accepted(id=request_id, tenant=tenant, info=INFO)


def started(request_id: str = ID, tenant: str = "one", epoch: int = 0) -> Events:
    event = Started(
        id=request_id,
        tenant=tenant,
        q=Q,
        offset=0,
        epoch=epoch,
        starts=1,
        counts=(0,),
        info=INFO,
        worker="w",
    )
    return Events(events=(event,))


def tokens(seq: int, request_id: str = ID, tenant: str = "one", epoch: int = 0) -> Events:
    event = Tokens(
        id=request_id,
        tenant=tenant,
        q=Q,
        offset=0,
        epoch=epoch,
        seq=seq,
        token_ids=(seq,),
        text=f"{seq} ",
    )
    return Events(events=(event,))


def cancelled(count: int) -> Events:
    event = Cancelled(id=ID, tenant="one", q=Q, offset=0, epoch=0, counts=(count,))
    return Events(events=(event,))


def kinds(events: list[Visible]) -> list[str]:
    return [type(it).__name__ for it in events]


async def test_a_box_gets_its_own_request_and_nothing_else(place: Place) -> None:
    box, other = place.watch(), place.watch(OTHER_ID)
    await place.append(accepted(), started(), tokens(0), accepted(OTHER_ID), tokens(1))
    assert kinds(box.take()) == ["Accepted", "Started", "Tokens", "Tokens"]
    assert kinds(other.take()) == ["Accepted"]


async def test_the_same_id_of_another_tenant_is_another_request(place: Place) -> None:
    box = place.watch(tenant="one")
    await place.append(accepted(tenant="two"), started(tenant="two"), tokens(0, tenant="two"))
    assert box.take() == []


async def test_what_nobody_watches_is_not_kept(place: Place) -> None:
    place.watch()
    await place.append(accepted(OTHER_ID), started(OTHER_ID), tokens(0, OTHER_ID), accepted())
    assert place.held() == {("one", ID)}


async def test_a_request_is_let_go_with_its_terminal_and_when_nobody_reads_it(
    place: Place,
) -> None:
    box, other = place.watch(), place.watch(OTHER_ID)
    await place.append(accepted(), accepted(OTHER_ID), started(), tokens(0), cancelled(1))
    assert kinds(box.take())[-1] == "Cancelled"
    assert place.held() == {("one", OTHER_ID)}
    place.router.unwatch(other.key)
    place.router.unwatch(other.key)
    assert (place.held(), place.router._boxes) == (set(), {})


async def test_fences_count_even_while_nobody_watches(place: Place) -> None:
    await place.append(Fence(epoch=7, qs=(Q,)))
    box = place.watch()
    await place.append(accepted(), started(epoch=3), tokens(0, epoch=3))
    assert kinds(box.take()) == ["Accepted"], "an older epoch is a zombie's"
    await place.append(started(epoch=7), tokens(0, epoch=7))
    assert kinds(box.take()) == ["Started", "Tokens"]


@pytest.mark.parametrize(("events_max", "bytes_max"), [(3, 10_000), (1000, 300)])
async def test_a_mailbox_past_its_bound_is_dropped_and_costs_nothing_more(
    place: Place, events_max: int, bytes_max: int
) -> None:
    box = Mailbox(("one", ID), events_max, bytes_max)
    place.router.watch(box)
    await place.append(accepted(), started(), *[tokens(seq) for seq in range(20)])
    assert box.overflowed
    assert box.take() == []
    assert (place.held(), place.router._boxes) == (set(), {})
    assert place.metrics.mailbox_drops._value.get() == 1


async def test_log_probabilities_weigh_in_a_mailbox() -> None:
    """They are the most of such an answer: a mailbox of 256 KiB could hold 15 MiB of them."""
    most = TokenLogprob(token="a", logprob=-1.0, top=(("b", -2.0),) * 20)
    (plain,) = tokens(0).events
    assert isinstance(plain, Tokens)
    box = Mailbox(("one", ID), 1024, 256 * 1024)
    held = sum(1 for _ in range(1024) if box.put(replace(plain, logprobs=(most,))))
    assert 10 < held < 256
    assert box.overflowed


async def test_a_waiting_reader_is_woken_once_there_is_something(place: Place) -> None:
    box = place.watch()
    waiting = asyncio.create_task(box.wait(5.0))
    await asyncio.sleep(0)
    await place.append(accepted())
    await asyncio.wait_for(waiting, 1.0)
    assert kinds(box.take()) == ["Accepted"]
    await asyncio.wait_for(box.wait(0.01), 1.0)
    assert box.take() == []


async def test_all_who_wait_are_let_go_when_the_replica_goes_away(place: Place) -> None:
    boxes = [place.watch(), place.watch(OTHER_ID)]
    waiting = [asyncio.create_task(box.wait(60.0)) for box in boxes]
    await asyncio.sleep(0)
    place.router.wake()
    await asyncio.wait_for(asyncio.gather(*waiting), 1.0)
    for box in boxes:
        box.close()


async def test_a_dropped_mailbox_takes_nothing_more_and_a_new_one_begins_anew(place: Place) -> None:
    """Of one record, too: what became visible in it was found before the first of it was put in."""
    old = place.watch(events_max=2)
    many = tuple(event for seq in range(5) for event in tokens(seq).events)
    await place.append(accepted(), started(), Events(events=many))
    assert old.overflowed
    assert place.metrics.mailbox_drops._value.get() == 1
    new = place.watch()
    await place.append(accepted(), started(), tokens(0))
    assert kinds(new.take()) == ["Accepted", "Started", "Tokens"]
    assert old.take() == []


async def test_an_undecodable_record_is_counted_and_passed_over(place: Place) -> None:
    box = place.watch()
    await place.append(accepted(), b"\xff{", b"", started(), tokens(0))
    assert kinds(box.take()) == ["Accepted", "Started", "Tokens"]
    assert place.metrics.log_faults.labels("undecodable_reply")._value.get() == 2
    assert place.router.reading


async def test_partitions_that_are_not_home_are_not_read(place: Place) -> None:
    await place.append(accepted(), started())
    assert set(place.router._readers) == {0, 2}


async def test_a_tail_that_fell_off_the_log_gives_up_its_boxes_and_reads_on(place: Place) -> None:
    box = place.watch()
    here = Partition(REPLIES, 0)
    await place.append(accepted())
    place.log.stop()
    template = place.log.records(here)[0]._replace(value=encode(accepted(OTHER_ID)))
    last = [place.log.store(template) for _ in range(5)][-1]
    place.log.trim(here, last.offset)
    place.log.start()
    async with asyncio.timeout(5):
        while not box.overflowed:
            await asyncio.sleep(0.01)
    fresh = place.watch(OTHER_ID)
    await place.append(accepted(OTHER_ID), started(OTHER_ID))
    assert kinds(fresh.take()) == ["Accepted", "Started"]
    assert place.router.reading


async def test_a_burst_is_worked_through_in_turns(place: Place) -> None:
    """No callback may keep the others waiting for over 5 ms: what a read gives is worked through in one."""
    count = 2000
    box = Mailbox(("one", ID), count + 2, 1 << 20)
    place.router.watch(box)
    await place.append(accepted(), started())
    place.log.stop()
    burst = [encode(tokens(seq)) for seq in range(count)]
    template = place.log.records(Partition(REPLIES, 0))[0]
    for value in burst:
        place.log.store(template._replace(value=value))
    in_turn, held = [0], 2

    def turn() -> None:
        nonlocal held
        now = len(box._events or ())
        in_turn.append(now - held)
        held = now
        if held < count + 2:
            asyncio.get_running_loop().call_soon(turn)

    place.log.start()
    turn()
    async with asyncio.timeout(5):
        while held < count + 2:
            await asyncio.sleep(0)
    assert sum(in_turn) == count
    assert max(in_turn) * len(burst[0]) <= READ_BYTES_MAX + len(burst[-1])
