"""What every log promises of groups: who reads, who commits, and who may not any more."""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from schemas.codec import RECORD_BYTES_MAX
from topics.ports import (
    CommitRefused,
    Committed,
    Log,
    Member,
    OffsetOutOfRange,
    Partition,
    Record,
)

Connect = Callable[[], Log]
MakeTopic = Callable[..., Awaitable[str]]
SESSION_SECONDS = 3.0


class Worker:
    """A member that polls in the background and remembers what the group told it."""

    def __init__(self, log: Log, group: str, topic: str) -> None:
        self.log, self.group, self.topic = log, group, topic
        self.told: list[tuple[str, frozenset[Partition]]] = []
        self.records: list[Record] = []
        self.errors: list[Exception] = []
        self.assigned = asyncio.Event()
        self.revoking = asyncio.Event()
        self.may_revoke = asyncio.Event()
        self.may_revoke.set()
        self.member: Member
        self._polling: asyncio.Task[None]

    async def start(self, instance_id: str | None = None) -> None:
        self.member = await self.log.join(
            self.group,
            self.topic,
            on_revoked=self._on_revoked,
            on_assigned=self._on_assigned,
            instance_id=instance_id,
            session_timeout_seconds=SESSION_SECONDS,
        )
        self._polling = asyncio.create_task(self._poll())

    async def _on_revoked(self, partitions: frozenset[Partition]) -> None:
        self.told.append(("revoked", partitions))
        self.assigned.clear()
        self.revoking.set()
        await self.may_revoke.wait()

    async def _on_assigned(self, partitions: frozenset[Partition]) -> None:
        self.told.append(("assigned", partitions))
        self.assigned.set()

    async def _poll(self) -> None:
        while True:
            try:
                self.records += await self.member.read(max_wait_seconds=0.1)
            except OffsetOutOfRange as error:
                self.errors.append(error)
                await asyncio.sleep(0.05)

    async def holds(self, count: int) -> frozenset[Partition]:
        async with asyncio.timeout(15):
            while not (self.assigned.is_set() and len(self.member.assignment()) == count):
                await asyncio.sleep(0.01)
        return self.member.assignment()

    async def read_from(self, positions: dict[Partition, int]) -> None:
        for partition, offset in positions.items():
            self.member.seek(partition, offset)
        self.member.resume(positions)

    async def has_read(self, count: int) -> list[Record]:
        async with asyncio.timeout(10):
            while len(self.records) < count:
                await asyncio.sleep(0.01)
        return self.records

    async def stop(self) -> None:
        await self.stop_polling()
        await self.member.close()

    async def stop_polling(self) -> None:
        self._polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._polling


MakeWorker = Callable[..., Worker]


@pytest_asyncio.fixture
async def make_worker(connect: Connect) -> AsyncIterator[MakeWorker]:
    workers: list[Worker] = []
    group = f"contract.{uuid.uuid4().hex[:12]}"

    def make(topic: str) -> Worker:
        workers.append(Worker(connect(), group, topic))
        return workers[-1]

    yield make
    for worker in workers:
        worker.may_revoke.set()
        if hasattr(worker, "member"):
            await worker.stop()
        await worker.log.close()


async def append(log: Log, topic: str, values: list[bytes], partition: int = 0) -> None:
    appender = await log.appender()
    await asyncio.gather(*(appender.append(topic, partition, value) for value in values))
    await appender.close()


async def test_nothing_is_read_before_seek_and_resume(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    await append(log, topic, [b"0", b"1", b"2"])
    worker = make_worker(topic)
    await worker.start()
    assert await worker.holds(2) == {Partition(topic, 0), Partition(topic, 1)}
    assert worker.told == [("assigned", worker.member.assignment())]
    assert worker.member.member_id
    await asyncio.sleep(0.7)
    assert (worker.records, worker.errors) == ([], [])
    with pytest.raises(ValueError, match="seek"):
        worker.member.resume([Partition(topic, 0)])
    await worker.read_from({Partition(topic, 0): 1})
    assert [r.value for r in await worker.has_read(2)] == [b"1", b"2"]
    # pausing keeps what comes from being read, resuming goes on where reading stopped
    worker.member.pause([Partition(topic, 0)])
    await append(log, topic, [b"3"])
    await asyncio.sleep(0.5)
    assert len(worker.records) == 2
    worker.member.resume([Partition(topic, 0)])
    assert [r.value for r in await worker.has_read(3)] == [b"1", b"2", b"3"]


async def test_a_position_off_the_log_is_said(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic(partitions=1)
    await append(log, topic, [b"0"])
    worker = make_worker(topic)
    await worker.start()
    (here,) = await worker.holds(1)
    await worker.read_from({here: 100})
    async with asyncio.timeout(5):
        while not worker.errors:
            await asyncio.sleep(0.01)
    await worker.read_from({here: 0})
    assert [r.value for r in await worker.has_read(1)] == [b"0"]


async def test_the_largest_record_is_read_between_small_ones(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic(partitions=1)
    large = secrets.token_bytes(RECORD_BYTES_MAX - 4096)  # nothing makes it smaller on its way
    await append(log, topic, [b"0", large, b"2"])
    worker = make_worker(topic)
    await worker.start()
    (here,) = await worker.holds(1)
    await worker.read_from({here: 0})
    assert [r.value for r in await worker.has_read(3)] == [b"0", large, b"2"]


async def test_partitions_of_others_are_ignored(
    make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    worker = make_worker(topic)
    await worker.start()
    await worker.holds(2)
    elsewhere = [Partition(topic, 7)]
    worker.member.pause(elsewhere)
    worker.member.seek(elsewhere[0], 3)
    worker.member.resume(elsewhere)
    assert worker.member.assignment() == {Partition(topic, 0), Partition(topic, 1)}


async def test_a_commit_keeps_offset_and_metadata(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    first, second = Partition(topic, 0), Partition(topic, 1)
    await append(log, topic, [b"%d" % i for i in range(10)])
    worker = make_worker(topic)
    await worker.start()
    await worker.holds(2)
    assert await log.committed(worker.group, [first, second]) == {}
    metadata = "a1:" + "x" * 3600
    await worker.member.commit({first: Committed(7, metadata)})
    assert await log.committed(worker.group, [first, second]) == {first: Committed(7, metadata)}
    await worker.member.commit({first: Committed(8, ""), second: Committed(0, "at the start")})
    assert await log.committed(worker.group, [first, second]) == {
        first: Committed(8, ""),
        second: Committed(0, "at the start"),
    }


async def test_a_second_member_takes_its_share(
    make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start()
    everything = await one.holds(2)
    await two.start()
    shares = [await one.holds(1), await two.holds(1)]
    assert shares[0] | shares[1] == everything
    assert one.told == [("assigned", everything), ("revoked", everything), ("assigned", shares[0])]
    # what was not resumed under the new generation stays unread
    assert one.member.member_id != two.member.member_id
    await two.stop()
    assert await one.holds(2) == everything


async def test_a_commit_under_way_ends_before_the_partitions_go(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start()
    held = await one.holds(2)
    one.may_revoke.clear()
    await two.start()
    async with asyncio.timeout(10):
        await one.revoking.wait()
    # inside the hook: nothing is held any more, so nothing can be committed
    assert one.member.assignment() == frozenset()
    with pytest.raises(CommitRefused):
        await one.member.commit({q: Committed(5, "late") for q in held})
    one.may_revoke.set()
    await one.holds(1)
    assert await log.committed(one.group, sorted(held)) == {}


async def test_commits_of_a_replaced_generation_are_refused(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start()
    held = await one.holds(2)
    await two.start()
    kept, given = await one.holds(1), await two.holds(1)
    with pytest.raises(CommitRefused):
        await one.member.commit({q: Committed(3, "zombie") for q in held})
    await two.member.commit({q: Committed(1, "new owner") for q in given})
    with pytest.raises(CommitRefused):
        await one.member.commit({q: Committed(9, "zombie") for q in given})
    await one.member.commit({q: Committed(2, "kept") for q in kept})
    told = await log.committed(one.group, sorted(held))
    assert {it.metadata for it in told.values()} == {"new owner", "kept"}


async def test_a_dead_member_is_removed_by_another(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start()
    await two.start()
    await one.holds(1)
    lost = await two.holds(1)
    old_id = two.member.member_id
    await log.remove_member(two.group, old_id)
    # a member that still lives learns of it, loses everything, and joins again as somebody else
    async with asyncio.timeout(10):
        while ("revoked", lost) not in two.told or two.member.member_id in {"", old_id}:
            await asyncio.sleep(0.01)
    await two.holds(1)
    await one.holds(1)
    assert two.member.member_id != old_id
    await log.remove_member(two.group, old_id)  # long gone: no error


async def test_a_closed_member_leaves_at_once(
    make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start("worker-1")
    await two.start("worker-2")
    await one.holds(1)
    await two.holds(1)
    async with asyncio.timeout(SESSION_SECONDS - 0.5):
        await two.stop()
        await one.holds(2)


async def test_a_member_that_comes_back_by_its_instance_id_moves_nothing(
    make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    await one.start("worker-1")
    await two.start("worker-2")
    await two.holds(1)
    held = await one.holds(1)
    told = list(two.told)
    again = make_worker(topic)
    await one.stop_polling()
    await again.start("worker-1")
    assert await again.holds(1) == held
    await asyncio.sleep(0.5)
    assert two.told == told


async def test_the_members_of_a_group_are_told_also_the_dead_ones(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one, two = make_worker(topic), make_worker(topic)
    assert await log.members(one.group) == []
    await one.start()
    await two.start()
    await one.holds(1)
    await two.holds(1)
    ids = {one.member.member_id, two.member.member_id}
    assert {it.member_id for it in await log.members(one.group)} == ids
    await two.stop_polling()
    assert {it.member_id for it in await log.members(one.group)} == ids
    await log.remove_member(one.group, two.member.member_id)
    left = {it.member_id for it in await log.members(one.group)}
    assert one.member.member_id in left


async def test_a_group_is_given_the_partitions_that_its_topic_grew_by(
    log: Log, make_topic: MakeTopic, make_worker: MakeWorker
) -> None:
    topic = await make_topic()
    one = make_worker(topic)
    await one.start()
    await one.holds(2)
    assert await log.grow({topic: 5, "contract-no-such-topic": 9}) == [topic]
    assert await log.grow({topic: 3}) == [], "nothing ever shrinks"
    assert await log.partition_count(topic, fresh=True) == 5
    held = await one.holds(5)
    assert held == frozenset(Partition(topic, index) for index in range(5))
    new = Partition(topic, 4)
    appender = await log.appender()
    await appender.append(topic, new.index, b"first")
    await appender.close()
    assert await log.end_offsets([new]) == {new: 1}
    tail = await log.tail({new: 0})
    records = await tail.read(max_wait_seconds=5.0)
    assert [it.value for it in records] == [b"first"]
    await tail.close()
