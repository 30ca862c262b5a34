"""A tail before a cluster that is made of answers: leaders that move, refuse, or are slow."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, NodeNotReadyError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c_py

from topics.kafka.fetch_connection import Then
from topics.kafka.fetch_protocol import Fetched, FetchRequest
from topics.kafka.tail import KafkaTail
from topics.ports import LogError, OffsetOutOfRange, Partition
from topics.read_size import READ_BYTES_MAX

A, B = Partition("t", 0), Partition("t", 1)
NOT_LEADER, NOT_ALLOWED, OUT_OF_RANGE = 6, 29, 1


def data_of(offset: int, *values: bytes) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, 1, None, value, [])
    return struct.pack(">q", offset) + bytes(builder.build())[8:]


class Cluster:
    """What a tail sees of `AIOKafkaClient`: each node's partitions hold `logs`; others are refused."""

    def __init__(self) -> None:
        self.logs: dict[Partition, list[bytes]] = {A: [], B: []}
        self.leaders: dict[Partition, int] = {A: 1, B: 1}
        self.known: dict[Partition, int] = dict(self.leaders)
        self.codes: dict[Partition, int] = {}
        self.away: set[int] = set()
        self.unauthorized_topics: set[str] = set()
        self.asked: list[tuple[int, dict[Partition, int]]] = []
        self.updates = 0
        self.topics: set[str] = set()
        self.cluster = self
        self._conns: dict[Any, Any] = {}
        self._md_update_fut: asyncio.Future[bool] | None = None
        self._sync_task: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._come = asyncio.Event()

    def put(self, partition: Partition, *values: bytes) -> None:
        self.logs[partition] += values
        self._come.set()

    def leader_for_partition(self, tp: TopicPartition) -> int | None:
        return self.known.get(Partition(*tp))

    def set_topics(self, topics: Iterable[str]) -> None:
        self.topics = set(topics)

    def force_metadata_update(self) -> None:
        self.updates += 1
        self.known = dict(self.leaders)

    async def bootstrap(self) -> None: ...
    async def close(self) -> None: ...

    async def send(self, node: int, request: FetchRequest) -> list[Fetched]:
        offsets = asked_of(request)
        self.asked.append((node, offsets))
        if node in self.away:
            raise NodeNotReadyError("away")
        for _ in range(20):
            if found := [it for p, at in offsets.items() if (it := self._answer(node, p, at))]:
                return found
            self._come.clear()
            try:
                await asyncio.wait_for(self._come.wait(), 0.05)
            except TimeoutError:
                break
        return []

    def _answer(self, node: int, partition: Partition, at: int) -> Fetched | None:
        if code := self.codes.get(partition, 0 if self.leaders[partition] == node else NOT_LEADER):
            return Fetched(partition, code, b"")
        values = self.logs[partition][at:]
        return Fetched(partition, 0, data_of(at, *values)) if values else None


def asked_of(request: FetchRequest) -> dict[Partition, int]:
    """Of one topic `t`."""
    body = request.body
    (count,) = struct.unpack_from(">i", body, 24)
    asked = (struct.unpack_from(">iqi", body, 28 + 16 * index) for index in range(count))
    return {Partition("t", index): offset for index, offset, _ in asked}


class Client:
    def __init__(self, cluster: Cluster) -> None:
        self.client = cluster
        self._asking: set[asyncio.Task[None]] = set()

    def fetch(self, node: int, request: FetchRequest, then: Then) -> None:
        async def ask() -> None:
            try:
                answer: list[Fetched] | Exception = await self.client.send(node, request)
            except KafkaError as error:
                answer = error
            then(answer)

        task = asyncio.get_running_loop().create_task(ask())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def stop(self) -> None: ...


@pytest_asyncio.fixture
async def cluster() -> Cluster:
    return Cluster()


@pytest_asyncio.fixture
async def tail(cluster: Cluster) -> AsyncIterator[KafkaTail]:
    async def opened(_: Iterable[str]) -> Any:
        return Client(Cluster())

    async def ends(_: Any) -> dict[Partition, int]:
        return {}

    client: Any = Client(cluster)
    tail = KafkaTail(client, opened, ends, {A: 0, B: 0}, lambda *_: None)
    yield tail
    await tail.close()


async def values(tail: KafkaTail, count: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += [it.value for it in await tail.read(0.05)]
    return found


async def until(condition: Callable[[], bool], tail: KafkaTail) -> None:
    async with asyncio.timeout(5):
        while not condition():
            assert await tail.read(0.02) == []


async def test_one_fetch_is_under_way_and_the_next_is_asked_for_before_the_records_are_used(
    tail: KafkaTail, cluster: Cluster
) -> None:
    assert await tail.read(0.01) == []
    assert len(cluster.asked) == 1
    cluster.put(A, b"0", b"1")
    assert [it.value for it in await tail.read(1.0)] == [b"0", b"1"]
    assert tail.position(A) == 2
    await asyncio.sleep(0)  # nobody reads
    assert cluster.asked[1:] == [(1, {B: 0, A: 2})]
    cluster.put(B, b"x")
    assert [it.value for it in await tail.read(1.0)] == [b"x"]


async def test_no_more_is_fetched_than_was_taken(tail: KafkaTail, cluster: Cluster) -> None:
    cluster.put(A, *(b"%d" % i for i in range(10)))
    for first in (0, 4, 8):
        assert cluster.asked[1:] == []
        records = await tail.read(1.0, max_records=4)
        assert [it.offset for it in records] == [*range(first, min(10, first + 4))]
        assert tail.position(A) == min(10, first + 4)


async def test_behind_damage_no_more_is_given_than_there_is_room_for(
    tail: KafkaTail, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, count = cluster._answer, READ_BYTES_MAX // 1000 - 5

    def damaged(node: int, partition: Partition, at: int) -> Fetched | None:
        if (found := whole(node, partition, at)) is None:
            return None
        bad = bytearray(data_of(count, b"bad"))
        bad[-1] ^= 1
        return Fetched(partition, 0, found[2] + bytes(bad))

    monkeypatch.setattr(cluster, "_answer", damaged)
    for partition in (A, B):
        cluster.put(partition, *[b"x" * 1000] * count)
    first, second = await tail.read(1.0), await tail.read(1.0)
    assert [len(first), len(second)] == [count, count]
    assert (tail.position(A), tail.position(B)) == (count, count)


async def test_a_cancelled_read_loses_nothing(tail: KafkaTail, cluster: Cluster) -> None:
    reading = asyncio.create_task(tail.read(5.0))
    await asyncio.sleep(0.01)
    reading.cancel()
    cluster.put(A, b"0")
    await asyncio.sleep(0.01)
    assert await values(tail, 1) == [b"0"]


async def test_who_was_served_asks_last(tail: KafkaTail, cluster: Cluster) -> None:
    cluster.put(A, b"0")
    await values(tail, 1)
    await asyncio.sleep(0)
    assert list(cluster.asked[-1][1]) == [B, A]


async def test_a_leader_that_moved_is_looked_for_with_pauses(
    tail: KafkaTail, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await tail.read(0.01)
    cluster.leaders[A] = 2
    cluster.put(A, b"0")
    assert await values(tail, 1) == [b"0"]
    assert (tail.rebuilds, cluster.updates) == (0, 1)
    cluster.leaders[B], cluster.codes[B] = 2, NOT_LEADER  # and one that nobody leads for a while
    cluster.put(B, b"x")
    before = len(cluster.asked)
    await until(lambda: cluster.updates >= 3, tail)
    assert len(cluster.asked) - before < 12
    del cluster.codes[B]
    assert await values(tail, 1) == [b"x"]
    assert sum("tried again" in it.message for it in caplog.records) <= 4


async def test_both_leaders_are_read_when_one_is_away(tail: KafkaTail, cluster: Cluster) -> None:
    cluster.leaders[B] = cluster.known[B] = 2
    cluster.away.add(2)
    for index in range(5):
        cluster.put(A, b"%d" % index)
        assert await values(tail, 1) == [b"%d" % index]
    cluster.put(B, b"x")
    cluster.away.clear()
    assert await values(tail, 1) == [b"x"]
    assert tail.rebuilds == 0


async def test_a_partition_without_a_leader_is_waited_for(
    tail: KafkaTail, cluster: Cluster
) -> None:
    cluster.known.clear()
    cluster.leaders.pop(A)
    cluster.put(B, b"x")
    assert await values(tail, 1) == [b"x"]
    cluster.leaders[A] = 1
    cluster.put(A, b"0")
    assert await values(tail, 1) == [b"0"]


async def test_what_was_fetched_for_other_positions_is_dropped(
    tail: KafkaTail, cluster: Cluster
) -> None:
    cluster.put(A, b"0", b"1", b"2")
    assert [it.offset for it in await tail.read(1.0, max_records=1)] == [0]
    tail.assign({A: 2})
    assert await values(tail, 1) == [b"2"]
    reading = asyncio.create_task(tail.read(0.05))
    await asyncio.sleep(0.01)  # a fetch is under way
    tail.assign({A: 1})
    cluster.put(A, b"3")  # what it brings lies behind what is wanted now
    found = [it.value for it in await reading]
    assert found + await values(tail, 3 - len(found)) == [b"1", b"2", b"3"]


async def test_refusals_are_told_and_do_not_end_the_tail(tail: KafkaTail, cluster: Cluster) -> None:
    cluster.codes[A] = OUT_OF_RANGE
    with pytest.raises(OffsetOutOfRange, match="t/0: 0"):
        await values(tail, 1)
    cluster.codes[A] = NOT_ALLOWED
    with pytest.raises(LogError, match="not allowed"):
        await values(tail, 1)
    cluster.codes.clear()
    cluster.put(A, b"0")
    assert await values(tail, 1) == [b"0"]
    cluster.known.clear()
    cluster.leaders.pop(B)
    cluster.unauthorized_topics.add("t")
    with pytest.raises(LogError, match="not allowed"):
        await values(tail, 1)
    assert tail.rebuilds == 0


async def test_damage_is_met_again_behind_what_is_whole(
    tail: KafkaTail, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put(A, b"0")
    damaged = data_of(1, b"1")[:-1] + b"!"

    def answer(_: int, partition: Partition, at: int) -> Fetched | None:
        whole = data_of(0, b"0") if at == 0 else b""
        return Fetched(A, 0, whole + damaged) if partition == A else None

    monkeypatch.setattr(cluster, "_answer", answer)
    assert await values(tail, 1) == [b"0"]
    assert tail.position(A) == 1
    assert await tail.read(1.0) == []
    assert tail.rebuilds == 1


async def test_whatever_is_wrong_with_a_record_those_before_it_are_read(
    tail: KafkaTail, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 1, None, b"2", [("name", b"")])
    odd = bytes(builder.build()).replace(
        b"name", b"n\xffme"
    )  # no UTF-8, as some client may write it
    odd = odd[:17] + struct.pack(">I", calc_crc32c_py(odd[21:])) + odd[21:]
    odd = struct.pack(">q", 2) + odd[8:]

    def answer(_: int, partition: Partition, at: int) -> Fetched | None:
        whole = data_of(0, b"0", b"1") if at == 0 else b""
        return Fetched(A, 0, whole + odd) if partition == A else None

    monkeypatch.setattr(cluster, "_answer", answer)
    assert await values(tail, 2) == [b"0", b"1"]
    assert tail.position(A) == 2
    began_s = asyncio.get_running_loop().time()
    assert await tail.read(1.0) == []
    assert tail.rebuilds == 1
    assert asyncio.get_running_loop().time() - began_s > 0.1  # it may be met again and again


async def test_a_read_ends_when_the_tail_is_closed(tail: KafkaTail) -> None:
    reading = asyncio.create_task(tail.read(30.0))
    await asyncio.sleep(0.01)
    await tail.close()
    assert await asyncio.wait_for(reading, 1.0) == []
    assert await tail.read(0.01) == []
    assert tail.rebuilds == 0


async def test_a_read_that_does_not_wait_lets_others_work(
    tail: KafkaTail, cluster: Cluster
) -> None:
    cluster.put(A, b"0")
    for _ in range(10):
        if records := await tail.read(0):
            break
    assert [it.value for it in records] == [b"0"]


async def test_two_leaders_that_both_answer_are_heard_once(
    tail: KafkaTail, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader moves while the former one still has an answer on its way."""

    def answer(_: int, partition: Partition, at: int) -> Fetched | None:
        found = cluster.logs[partition][at:]
        return Fetched(partition, 0, data_of(at, *found)) if found else None

    monkeypatch.setattr(cluster, "_answer", answer)
    assert await tail.read(0.01) == []
    cluster.known = {A: 2, B: 1}
    assert await tail.read(0.01) == []
    assert [(node, A in offsets) for node, offsets in cluster.asked] == [(1, True), (2, True)]
    cluster.put(A, b"0", b"1")
    await asyncio.sleep(0.02)  # both have answered, nobody has read
    assert await values(tail, 2) == [b"0", b"1"]
    assert await tail.read(0.02) == []


async def test_what_is_assigned_while_a_client_is_made_anew_is_known_to_it() -> None:
    opened, old, new = asyncio.Event(), Cluster(), Cluster()

    async def open_client(_: Iterable[str]) -> Any:
        await opened.wait()
        return Client(new)

    async def ends(_: Any) -> dict[Partition, int]:
        return {}

    client: Any = Client(old)
    tail = KafkaTail(client, open_client, ends, {A: 0}, lambda *_: None)
    old._sync_task.cancel()
    assert await tail.read(0.01) == []
    assert tail.rebuilds == 1
    assert await tail.read(0.01) == []
    other = Partition("other", 0)
    tail.assign({A: 0, other: 0})
    opened.set()
    await tail.read(0.01)
    assert new.topics == {"t", "other"}
    await tail.close()
