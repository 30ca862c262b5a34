"""Partitions that change hands, grow, or lose their fences' records, on a real broker of our own."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from consumers.inference.service import InferenceService
from core.errors import Refusal
from core.limits import DEFAULT_LIMITS
from core.stream import Visible, is_terminal
from producer_api import growth
from schemas.codec import decode_fence, decode_reply, encode
from schemas.fences import Acquired, Fenced, FenceRecord, Still
from schemas.ids import make_request_id, parse_request_id
from schemas.operations import Control
from schemas.replies import Events, Started
from tests.memory_stack import MemoryStack, scripted_answer, text_of
from topics import fence_tail
from topics.broker import LocalCluster
from topics.catalogue import CONTROL, FENCES, REPLIES, request_topic
from topics.fence_tail import FencesLost, FenceTail
from topics.kafka import KafkaLog
from topics.ports import Partition, Record

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(90)]

SESSION_SECONDS = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bootstrap(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """A broker of our own: its `fences` and `replies` are grown, cut off and deleted here."""
    cluster = LocalCluster(tmp_path_factory.mktemp("takeover"), libs=kafka_libs, heap_mb=256)
    try:
        yield await cluster.start()
    finally:
        await cluster.stop()


class Place(MemoryStack):
    """The same on Kafka; every worker has a connection of its own."""

    def __init__(self, bootstrap: str, **more: object) -> None:
        super().__init__(KafkaLog(bootstrap), pool=uuid.uuid4().hex[:8], **more)  # type: ignore[arg-type]
        self.bootstrap = bootstrap

    async def join(self, name: str, *options: str) -> InferenceService:
        return await self.worker(
            *options, name=name, session_seconds=SESSION_SECONDS, log=KafkaLog(self.bootstrap)
        )

    async def records(self, partition: Partition) -> list[Record]:
        """All that is there now."""
        start = (await self.log.start_offsets([partition]))[partition]
        end = (await self.log.end_offsets([partition]))[partition]
        found: list[Record] = []
        tail = await self.log.tail({partition: start})
        while tail.position(partition) < end:
            found += await tail.read(max_wait_seconds=0.5)
        await tail.close()
        return found

    async def all_fences(self) -> list[FenceRecord]:
        return [decode_fence(it.value) for it in await self.records(Partition(FENCES, 0))]

    async def starts(self, request_id: str) -> list[Started]:
        here = Partition(REPLIES, parse_request_id(request_id).reply_partition)
        replies = [decode_reply(it.value) for it in await self.records(here)]
        events = [event for it in replies if isinstance(it, Events) for event in it.events]
        return [it for it in events if isinstance(it, Started) and it.id == request_id]

    def epochs(self, worker: InferenceService) -> dict[Partition, int]:
        return {q: it.epoch for tier in worker._tiers for q, it in tier.owned.items()}

    async def stop(self) -> None:
        await super().stop()
        await self.log.close()


@pytest_asyncio.fixture
async def place(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(growth, "LOOK_SECONDS", 0.3)
    place = Place(bootstrap)
    await place.start()
    yield place
    await place.stop()


async def read_in(place: Place, tenant: str, request_id: str) -> tuple[list[Visible], float]:
    """The answer, and the longest wait between two pieces of it."""
    loop = asyncio.get_running_loop()
    stream = await place.api.open(tenant, request_id)
    found: list[Visible] = []
    longest_s, last_s = 0.0, loop.time()
    async with asyncio.timeout(60):
        while not (found and is_terminal(found[-1])):
            if events := await stream.next(1.0):
                longest_s, last_s = max(longest_s, loop.time() - last_s), loop.time()
                found += events
    await stream.close()
    return found, longest_s


async def test_a_stream_is_not_interrupted_when_others_join_and_leave(place: Place) -> None:
    one = await place.join("one", "tokens_per_second=50")
    await place.open_api()
    prompts = [f"long {index}" for index in range(8)]
    ids = [await place.ask(prompt, 400, tenant=prompt) for prompt in prompts]
    reading = [
        asyncio.create_task(read_in(place, tenant, request_id))
        for tenant, request_id in zip(prompts, ids, strict=True)
    ]
    await asyncio.sleep(1.0)
    before = place.epochs(one)
    two = await place.join("two", "tokens_per_second=50")
    async with asyncio.timeout(20):
        while not (one.owns_all() and len(place.epochs(one)) == 8):
            await asyncio.sleep(0.02)
    kept = place.epochs(one)
    assert kept == {q: before[q] for q in kept}, "step 0: what stays keeps its epoch"
    async with asyncio.timeout(20):
        for request_id in ids:
            while (last := (await place.starts(request_id))[-1]).worker != "two":
                if Partition(*_split(last.q)) in kept:
                    break
                await asyncio.sleep(0.05)
    await two.stop(drain=False)
    async with asyncio.timeout(20):
        while not (one.owns_all() and len(place.epochs(one)) == 16):
            await asyncio.sleep(0.02)
    assert {q: epoch for q, epoch in place.epochs(one).items() if q in kept} == kept
    answers = [await it for it in reading]
    stayed = 0
    for prompt, request_id, (answer, longest_s) in zip(prompts, ids, answers, strict=True):
        assert text_of(answer) == scripted_answer(prompt, 400)
        starts = await place.starts(request_id)
        if Partition(*_split(starts[0].q)) in kept:
            stayed += 1
            assert len(starts) == 1, "it ran on through both rebalances"
            assert longest_s < 1.0
        else:
            assert [it.worker for it in starts] == ["one", "two", "one"]
    assert 0 < stayed < 8


def _split(q: str) -> tuple[str, int]:
    topic, _, index = q.rpartition("/")
    return topic, int(index)


async def test_replies_and_request_topics_grow_under_load(place: Place) -> None:
    worker = await place.join("one", "tokens_per_second=50")
    await place.open_api()
    running = await place.ask("was running", 200)
    topic = worker._tiers[1].topic
    size = await place.log.partition_count(REPLIES, fresh=True)
    assert await place.log.grow({REPLIES: size + 2, topic: 6}) == sorted([REPLIES, topic])
    async with asyncio.timeout(30):
        while not (
            place.api._placement.reply_partitions == size + 2
            and sum(q.topic == topic for q in place.epochs(worker)) == 6
        ):
            await asyncio.sleep(0.05)
    prompts = [f"p{index}" for index in range(16)]
    ids = [await place.ask(prompt, 5) for prompt in prompts]
    assert size + 1 in {parse_request_id(it).reply_partition for it in ids}
    for prompt, request_id in zip(prompts, ids, strict=True):
        assert text_of(await place.read(request_id)) == scripted_answer(prompt, 5)
    assert text_of(await place.read(running)) == scripted_answer("was running", 200)


async def test_a_repeat_stands_in_once_the_broker_has_dropped_a_and_b(bootstrap: str) -> None:
    limits = DEFAULT_LIMITS.__class__(reply_retention_seconds=4.0, total_seconds=2.0)
    place = Place(bootstrap, limits=limits)
    await place.start()
    try:
        worker = await place.join("one")
        epochs = place.epochs(worker)
        async with asyncio.timeout(20):
            while not set(epochs.values()) <= {
                it.epoch for it in await place.all_fences() if isinstance(it, Still)
            }:
                await asyncio.sleep(0.2)
        last = max(
            it.offset
            for it in await place.records(Partition(FENCES, 0))
            if isinstance(decode_fence(it.value), Acquired | Fenced)
        )
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.delete_records({TopicPartition(FENCES, 0): RecordsToDelete(last + 1)})
        await admin.close()
        start = (await place.log.start_offsets([Partition(FENCES, 0)]))[Partition(FENCES, 0)]
        assert start == last + 1
        late = await FenceTail.open(place.log)
        assert {q: late.fences.highest(str(q)) for q in epochs} == epochs
        await late.close()
        two = await place.join("two")
        async with asyncio.timeout(20):
            while not (worker.owns_all() and len(place.epochs(worker)) == 8):
                await asyncio.sleep(0.02)
        kept = place.epochs(worker)
        assert kept == {q: epochs[q] for q in kept}
        assert not worker.failed.done()
        assert not two.failed.done()
    finally:
        await place.stop()


async def test_the_marks_that_transactions_leave_hold_nobody_up(place: Place) -> None:
    """They have offsets and are no records; a topic producer with transactions leaves one per commit."""
    topic, replies = request_topic(place.pool, "standard"), await place.log.partition_count(REPLIES)
    one = await place.join("one")
    await place.open_api()
    elsewhere = Acquired(qs=(f"elsewhere.{place.pool}/0",), incarnation="x", ends=())
    async with (
        AIOKafkaProducer(bootstrap_servers=place.bootstrap, transactional_id=place.pool) as plain,
        plain.transaction(),
    ):
        for index in range(4):
            await plain.send_and_wait(topic, b"{}", partition=index)
        for index in range(replies):
            events = encode(Events(events=()))
            await plain.send_and_wait(REPLIES, events, partition=index)
        await plain.send_and_wait(FENCES, encode(elsewhere), partition=0)
        await plain.send_and_wait(CONTROL, encode(Control(kind="drain")), partition=0)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(Refusal, match="There is no request"):
        await place.api.status("one", make_request_id(int(time.time() * 1000), 0, 7))
    assert asyncio.get_running_loop().time() - began_s < 10
    await one.stop()
    two = await place.join("two")  # within its own limit
    request_id = await place.ask("behind the marks", 3)
    assert text_of(await place.read(request_id)) == scripted_answer("behind the marks", 3)
    assert not two.failed.done()


@pytest.mark.parametrize("records", [0, 400])
async def test_fences_deleted_and_made_again_are_noticed(
    place: Place, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    monkeypatch.setattr(fence_tail, "IDENTITY_SECONDS", 0.2)
    tail = await FenceTail.open(place.log)
    admin = AIOKafkaAdminClient(bootstrap_servers=place.bootstrap)
    await admin.start()
    await admin.delete_topics([FENCES])
    await admin.close()
    async with asyncio.timeout(20):
        while FENCES in await place.log.describe([FENCES]):
            await asyncio.sleep(0.1)
    await place.start()  # makes it again
    appender = await place.log.appender()
    for _ in range(records):
        await appender.append(FENCES, 0, b"{}")
    await appender.close()
    with pytest.raises(FencesLost):
        await asyncio.wait_for(tail.until_lost(), 15)
    await tail.close()
