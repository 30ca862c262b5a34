"""What only the real log can suffer: brokers that go, freeze and come back, clients that get stuck."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.broker_faults import frozen, kill, sockets_to
from topics.broker import LocalCluster
from topics.kafka import KafkaLog, questions
from topics.kafka import reading as kafka_reading
from topics.kafka.tail import FETCH_WAIT_MS
from topics.ports import (
    Appended,
    AppendFailed,
    AppendUnknown,
    CommitRefused,
    Committed,
    LogError,
    Member,
    Partition,
    Record,
    Tail,
    TopicSpec,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

JoinGroup = Callable[[], Awaitable[tuple[Any, list[Any]]]]
Closing = Callable[[Any], Any]


@pytest.fixture
def cluster(faulty_cluster: LocalCluster) -> LocalCluster:
    return faulty_cluster


@pytest.fixture
def log(faulty_log: KafkaLog) -> KafkaLog:
    return faulty_log


@pytest.fixture
def topic(faulty_topic: str) -> str:
    return faulty_topic


async def read(reader: Tail | Member, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(25):
        while len(records) < count:
            records += await reader.read(max_wait_seconds=0.2)
    return records


async def append(log: KafkaLog, topic: str, *values: bytes) -> list[Appended]:
    appender = await log.appender()
    appended = await asyncio.gather(*(appender.append(topic, 0, value) for value in values))
    await appender.close()
    return appended


async def test_a_restarted_broker_is_met_again_by_all(
    cluster: LocalCluster, log: KafkaLog, topic: str, join_group: JoinGroup, closing: Closing
) -> None:
    here = Partition(topic, 0)
    appender, tail = closing(await log.appender()), closing(await log.tail({here: 0}))
    member, told = await join_group()
    acks = [appender.append(topic, 0, b"%d" % i) for i in range(50)]
    assert len(await read(tail, 50)) == 50
    await kill(cluster)
    acks += [appender.append(topic, 0, b"%d" % i) for i in range(50, 100)]
    assert await tail.read(max_wait_seconds=0.3) == []
    assert not acks[-1].done()
    await cluster.start()
    acks += [appender.append(topic, 0, b"%d" % i) for i in range(100, 120)]
    appended = await asyncio.gather(*acks)
    assert [it.offset for it in appended] == list(range(120))
    assert [r.value for r in await read(tail, 70)] == [b"%d" % i for i in range(50, 120)]
    assert await read_and_commit(member, told, here, 120) == list(range(120))
    assert await log.committed(f"group-{topic}", [here]) == {here: Committed(120, "after")}
    assert log.rebuilds.total() == 0


async def test_a_topic_deleted_while_it_is_described_is_left_out(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, before = questions._found, []

    async def then_deleted(admin: AIOKafkaAdminClient, names: list[str]) -> Any:
        before.append(found := await find(admin, names))
        if found:
            await admin.delete_topics([topic])
            while await find(admin, names):
                await asyncio.sleep(0.05)
        return found

    monkeypatch.setattr(questions, "_found", then_deleted)
    assert await log.describe([topic]) == {}
    assert [sorted(it) for it in before] == [[topic], []]


async def read_and_commit(member: Any, told: list[Any], here: Partition, count: int) -> list[int]:
    """As a worker does: an assignment is taken up, a commit is begun anew after the next one."""
    offsets: list[int] = []
    seen = 0
    async with asyncio.timeout(25):
        while True:
            if len(told) != seen and here in member.assignment():
                seen = len(told)
                member.seek(here, len(offsets))
                member.resume([here])
            records = await member.read(max_wait_seconds=0.1)
            offsets += [r.offset for r in records if r.partition == here.index]
            if len(offsets) >= count:
                with contextlib.suppress(CommitRefused):
                    await member.commit({here: Committed(count, "after")})
                    return offsets


async def test_a_commit_waits_for_a_coordinator_that_is_not_known(
    log: KafkaLog, topic: str, join_group: JoinGroup
) -> None:
    member, _ = await join_group()
    here = Partition(topic, 0)
    member.consumer._coordinator.coordinator_dead()  # as after a connection that broke
    await member.commit({here: Committed(0, "found again")})
    assert await log.committed(f"group-{topic}", [here]) == {here: Committed(0, "found again")}
    await member.close()


async def test_with_a_frozen_broker_every_call_ends_in_time(
    cluster: LocalCluster, log: KafkaLog, topic: str, closing: Closing
) -> None:
    here = Partition(topic, 0)
    await log.end_offsets([here])
    appender, tail = closing(await log.appender()), closing(await log.tail({here: 0}))
    await appender.append(topic, 0, b"0")
    async with frozen(cluster):
        begun = time.monotonic()
        ended = await asyncio.gather(
            log.end_offsets([here]),
            log.committed("group", [here]),
            log.appender(),
            return_exceptions=True,
        )
        assert [type(it) for it in ended] == [LogError] * 3
        assert time.monotonic() - begun < 8
        pending = appender.append(topic, 0, b"1")
        await appender.close(timeout_seconds=0.2)
        with pytest.raises(AppendUnknown):
            await pending
        assert time.monotonic() - begun < 14
    assert (await read(tail, 1))[0].value == b"0"
    assert (await log.end_offsets([here]))[here] >= 1


async def test_nothing_is_left_of_clients_that_end_while_the_broker_is_frozen(
    cluster: LocalCluster, log: KafkaLog, topic: str, closing: Closing
) -> None:
    here = Partition(topic, 0)
    appender, tail = closing(await log.appender()), closing(await log.tail({here: 0}))
    await appender.append(topic, 0, b"0")
    async with frozen(cluster):
        # more than the sockets take: a polite end would wait for it to be written
        acks = [appender.append(topic, i % 2, bytes(2_900_000)) for i in range(8)]
        opening = [asyncio.create_task(it) for it in (log.appender(), log.tail({here: 0}))]
        await asyncio.sleep(0.3)
        for task in opening:
            task.cancel()
        begun = time.monotonic()
        await asyncio.gather(appender.close(timeout_seconds=0.2), tail.close())
        await log.close()
        assert time.monotonic() - begun < 8
        await asyncio.sleep(0.05)
        assert sockets_to(cluster) == []
        ended = await asyncio.gather(*acks, return_exceptions=True)
        assert {type(it) for it in ended} == {AppendUnknown}
        assert all(task.cancelled() for task in opening)


async def test_an_append_without_an_ack_is_in_doubt_and_ends_the_appender(
    cluster: LocalCluster, log: KafkaLog, topic: str, closing: Closing
) -> None:
    impatient = closing(
        KafkaLog(cluster.bootstrap, request_timeout_seconds=2.0, append_timeout_seconds=1.0)
    )
    appender = closing(await impatient.appender())
    await appender.append(topic, 0, b"acknowledged")
    async with frozen(cluster):
        acks = [appender.append(topic, 0, b"x"), appender.append(topic, 1, b"y")]
        begun = time.monotonic()
        ended = await asyncio.gather(*acks, return_exceptions=True)
        assert [type(it) for it in ended] == [AppendUnknown, AppendUnknown]
        assert time.monotonic() - begun < 4
        with pytest.raises(AppendFailed):
            await appender.append(topic, 0, b"never sent")
        appender.append(topic, 0, b"nobody awaits this")
        assert impatient.rebuilds == {("appender", "in_doubt"): 1}
        await appender.close()
    (again,) = await append(log, topic, b"again")
    # what was in doubt is there or is not; what was refused is not
    tail = closing(await log.tail({Partition(topic, 0): 0}))
    values = [r.value for r in await read(tail, again.offset + 1)]
    assert values in ([b"acknowledged", b"again"], [b"acknowledged", b"x", b"again"])


async def test_a_producer_that_died_is_noticed(log: KafkaLog, topic: str, closing: Closing) -> None:
    appender = closing(await log.appender())
    await appender.append(topic, 0, b"0")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("as if aiokafka had a bug")

    appender._buffer.drain_by_nodes = fails
    ended = await asyncio.gather(
        appender.append(topic, 0, b"1"), appender.append(topic, 1, b"2"), return_exceptions=True
    )
    assert [type(it) for it in ended] == [AppendUnknown, AppendUnknown]
    with pytest.raises(AppendFailed):
        await appender.append(topic, 0, b"3")
    await appender.close()


async def test_a_tail_replaces_a_client_that_died(
    log: KafkaLog, topic: str, closing: Closing
) -> None:
    tail = closing(await log.tail({Partition(topic, 0): 0}))
    await append(log, topic, b"0")
    assert len(await read(tail, 1)) == 1
    tail._client.client._sync_task.cancel()  # leaders that move would not be found any more
    assert await tail.read(max_wait_seconds=0.1) == []
    await append(log, topic, b"1")
    assert [r.offset for r in await read(tail, 1)] == [1]
    assert (tail.rebuilds, log.rebuilds) == (1, {("tail", "died"): 1})
    await tail.close()


async def test_a_tail_replaces_a_client_that_is_silently_stuck(
    log: KafkaLog, topic: str, closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reading, "STUCK_SECONDS", 0.5)
    tail = closing(await log.tail({Partition(topic, 0): 0}))
    await append(log, topic, b"0")
    assert len(await read(tail, 1)) == 1
    for _ in range(20):  # an idle tail is not stuck
        assert await tail.read(max_wait_seconds=0.1) == []

    tail._client.fetch = lambda *_: None  # no answer ever comes
    await asyncio.sleep(FETCH_WAIT_MS / 1000 + 0.3)  # the fetch that is under way ends
    assert await tail.read(max_wait_seconds=0.1) == []
    await append(log, topic, b"1")
    assert [r.offset for r in await read(tail, 1)] == [1]
    assert (tail.rebuilds, log.rebuilds) == (1, {("tail", "stuck"): 1})
    await tail.close()


async def test_without_a_broker_every_call_ends_in_time(
    cluster: LocalCluster, log: KafkaLog, topic: str, join_group: JoinGroup, closing: Closing
) -> None:
    here = Partition(topic, 0)
    member, _ = await join_group()
    tail = closing(await log.tail({here: 0}))
    await kill(cluster)
    calls: dict[str, Awaitable[Any]] = {
        "ends": log.end_offsets([here]),
        "starts": log.start_offsets([here]),
        "times": log.offsets_at({here: 0}),
        "committed": log.committed("group", [here]),
        "describe": log.describe([topic]),
        "create": log.create([TopicSpec("other", 1, 1, {})]),
        "remove": log.remove_member("group", "nobody"),
        "count": KafkaLog(cluster.bootstrap, request_timeout_seconds=2.0).partition_count(topic),
        "appender": log.appender(),
        "tail": log.tail({here: 0}),
        "commit": member.commit({here: Committed(0, "")}),
    }
    begun = time.monotonic()
    ended = await asyncio.gather(*calls.values(), return_exceptions=True)
    assert {name: type(it) for name, it in zip(calls, ended, strict=True)} == dict.fromkeys(
        calls, LogError
    )
    assert time.monotonic() - begun < 8
    begun = time.monotonic()
    await asyncio.gather(tail.close(), member.close())
    assert time.monotonic() - begun < 8


async def test_a_topic_deleted_under_a_tail_is_asked_for_with_pauses(
    log: KafkaLog, topic: str, closing: Closing, caplog: pytest.LogCaptureFixture
) -> None:
    """Each answer is a line of aiokafka's log: a thousand a second would fill the disk."""
    tail = closing(await log.tail({Partition(topic, 0): 0}))
    await tail.read(max_wait_seconds=0.5)
    admin = AIOKafkaAdminClient(bootstrap_servers=log._arguments["bootstrap_servers"])
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()
    caplog.clear()
    for _ in range(6):
        await tail.read(max_wait_seconds=0.5)
    said = [it.message for it in caplog.records if f"Topic {topic} not found" in it.message]
    assert 1 <= len(said) < 60
    await tail.close()
