"""What every log promises of appending, reading and answering; both pass the same tests."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from topics.ports import (
    Appended,
    AppendFailed,
    Log,
    LogError,
    OffsetOutOfRange,
    Partition,
    Record,
    RecordTooLarge,
    Tail,
    TopicSpec,
)
from topics.read_size import READ_BYTES_MAX, record_bytes

MakeTopic = Callable[..., Awaitable[str]]


async def append(log: Log, topic: str, values: list[bytes], partition: int = 0) -> list[Appended]:
    appender = await log.appender()
    acks = [appender.append(topic, partition, value) for value in values]
    appended = await asyncio.gather(*acks)
    await appender.close()
    return appended


async def read(tail: Tail, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(10):
        while len(records) < count:
            records += await tail.read(max_wait_seconds=0.2)
    return records


async def test_acks_tell_offsets_in_call_order(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    before_ms = int(time.time() * 1000)
    appended = await append(log, topic, [b"%d" % i for i in range(500)], partition=1)
    assert [it.offset for it in appended] == list(range(500))
    assert {it.partition for it in appended} == {1}
    assert all(
        before_ms - 1000 <= (it.time_ms or 0) <= time.time() * 1000 + 1000 for it in appended
    )


async def test_a_tail_reads_what_was_appended_in_order(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    here = Partition(topic, 0)
    appender = await log.appender()
    headers = (("id", b"1"), ("traceparent", b"\x00\xff"))
    acks = [
        appender.append(topic, 0, b"value", key=b"key", headers=headers),
        appender.append(topic, 0, None, key=b"gone"),
        appender.append(topic, 0, b"no key"),
    ]
    appended = await asyncio.gather(*acks)
    tail = await log.tail({here: 0})
    records = await read(tail, 3)
    assert [(r.key, r.value, r.headers) for r in records] == [
        (b"key", b"value", headers),
        (b"gone", None, ()),
        (None, b"no key", ()),
    ]
    assert [(r.topic, r.partition, r.offset) for r in records] == [(topic, 0, i) for i in range(3)]
    assert [r.time_ms for r in records] == [it.time_ms for it in appended]
    assert tail.position(here) == 3
    await tail.close()
    await appender.close()


async def test_a_tail_waits_no_longer_than_told(log: Log, make_topic: MakeTopic) -> None:
    tail = await log.tail({Partition(await make_topic(), 0): 0})
    begun = time.monotonic()
    assert await tail.read(max_wait_seconds=0.3) == []
    assert 0.2 < time.monotonic() - begun < 2.0
    await tail.close()


async def test_a_tail_is_woken_by_an_append(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    tail = await log.tail({Partition(topic, 0): 0})
    reading = asyncio.create_task(tail.read(max_wait_seconds=10.0))
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    await append(log, topic, [b"x"])
    assert [r.value for r in await reading] == [b"x"]
    assert time.monotonic() - begun < 5.0
    await tail.close()


async def test_a_read_is_bounded_in_records_and_loses_none(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    await append(log, topic, [b"%d" % i for i in range(25)])
    tail = await log.tail({Partition(topic, 0): 5})
    seen: list[int] = []
    async with asyncio.timeout(10):
        while len(seen) < 20:
            records = await tail.read(max_wait_seconds=0.5, max_records=3)
            assert len(records) <= 3
            seen += [r.offset for r in records]
            assert tail.position(Partition(topic, 0)) == seen[-1] + 1 if seen else 5
    assert seen == list(range(5, 25))
    await tail.close()


async def test_a_read_is_bounded_in_bytes_and_others_have_a_turn_between(
    log: Log, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    value = b"x" * (READ_BYTES_MAX // 10)
    await append(log, topic, [value] * 50)
    await append(log, topic, [*[value] * 55, value * 30], partition=1)
    tail = await log.tail({Partition(topic, 0): 0, Partition(topic, 1): 0})
    turns, reading = 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        if reading:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    seen: list[list[int]] = [[], []]
    largest = 0
    async with asyncio.timeout(20):
        while len(seen[0]) + len(seen[1]) < 106:
            before = turns
            records = await tail.read(max_wait_seconds=5.0)
            assert turns > before, "whoever reads on at once starves the others"
            assert sum(map(record_bytes, records[:-1])) < READ_BYTES_MAX
            largest = max(largest, len(records))
            for record in records:
                seen[record.partition].append(record.offset)
                assert tail.position(Partition(topic, record.partition)) > record.offset
            for index, offsets in enumerate(seen):
                assert tail.position(Partition(topic, index)) == len(offsets)
    reading = False
    assert seen == [list(range(50)), list(range(56))]
    assert largest == 10, "what there is room for is given together"
    await tail.close()


async def test_a_partition_that_never_runs_dry_starves_no_other(
    log: Log, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    tail = await log.tail({Partition(topic, 0): 0, Partition(topic, 1): 0})
    busy = [b"x" * 1000] * (READ_BYTES_MAX // 500)
    await append(log, topic, [b"seldom"], partition=1)
    for _ in range(10):
        await append(log, topic, busy)
        if any(it.partition for it in await tail.read(max_wait_seconds=5.0)):
            break
    else:
        pytest.fail("the other partition was not read")
    await tail.close()


async def test_a_cancelled_read_loses_nothing(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    tail = await log.tail({Partition(topic, 0): 0})
    appender = await log.appender()
    seen: list[int] = []
    for i in range(40):
        reading = asyncio.create_task(tail.read(max_wait_seconds=1.0))
        await asyncio.sleep(0)
        appender.append(topic, 0, b"%d" % i)
        await asyncio.sleep(0.001 * (i % 7))
        reading.cancel()
        [ended] = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(ended, list):
            seen += [r.offset for r in ended]
    await appender.close()
    seen += [r.offset for r in await read(tail, 40 - len(seen))] if len(seen) < 40 else []
    assert seen == list(range(40))
    await tail.close()


async def test_a_tail_can_be_given_other_partitions(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    await append(log, topic, [b"a0", b"a1"], partition=0)
    await append(log, topic, [b"b0", b"b1"], partition=1)
    tail = await log.tail({Partition(topic, 0): 0})
    assert [r.value for r in await read(tail, 2)] == [b"a0", b"a1"]
    tail.assign({Partition(topic, 0): 1, Partition(topic, 1): 1})
    assert sorted(r.value or b"" for r in await read(tail, 2)) == [b"a1", b"b1"]
    tail.assign({Partition(topic, 1): 0})
    assert [r.value for r in await read(tail, 2)] == [b"b0", b"b1"]
    assert tail.position(Partition(topic, 1)) == 2
    await tail.close()


async def test_a_position_off_the_log_is_said(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    await append(log, topic, [b"0", b"1"])
    tail = await log.tail({Partition(topic, 0): 3})
    with pytest.raises(OffsetOutOfRange):
        await read(tail, 1)
    tail.assign({Partition(topic, 0): 1})
    assert [r.offset for r in await read(tail, 1)] == [1]
    await tail.close()


async def test_offsets_of_start_end_and_times(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    first, second = Partition(topic, 0), Partition(topic, 1)
    assert await log.end_offsets([first, second]) == {first: 0, second: 0}
    await append(log, topic, [b"early", b"early"])
    await asyncio.sleep(0.05)
    (late,) = await append(log, topic, [b"late"])
    assert late.time_ms is not None
    assert await log.end_offsets([first, second]) == {first: 3, second: 0}
    assert await log.start_offsets([first, second]) == {first: 0, second: 0}
    assert await log.offsets_at({first: late.time_ms, second: late.time_ms}) == {
        first: 2,
        second: 0,
    }
    assert await log.offsets_at({first: 0}) == {first: 0}
    assert await log.offsets_at({first: late.time_ms + 60_000}) == {first: 3}


async def test_a_record_too_large_is_refused_and_the_appender_goes_on(
    log: Log, make_topic: MakeTopic
) -> None:
    topic = await make_topic(max_message_bytes="100000")
    appender = await log.appender()
    acks = [
        appender.append(topic, 0, b"before"),
        appender.append(topic, 0, b"x" * 500_000),  # the topic's limit, which the broker knows
        appender.append(topic, 0, b"between"),
        appender.append(topic, 0, b"x" * 8_000_000),  # more than any record may have
        appender.append(topic, 0, b"after"),
    ]
    ended = await asyncio.gather(*acks, return_exceptions=True)
    assert [type(it) for it in ended] == [
        Appended,
        RecordTooLarge,
        Appended,
        RecordTooLarge,
        Appended,
    ]
    assert (await appender.append(topic, 0, b"still")).offset == 3
    await appender.close()
    tail = await log.tail({Partition(topic, 0): 0})
    assert [r.value for r in await read(tail, 4)] == [b"before", b"between", b"after", b"still"]
    await tail.close()


async def test_a_record_of_two_megabytes_goes_through(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic(max_message_bytes=str(3 * 1024 * 1024))
    value = bytes(2 * 1024 * 1024)
    await append(log, topic, [value, b"small"])
    tail = await log.tail({Partition(topic, 0): 0})
    assert [r.value for r in await read(tail, 2)] == [value, b"small"]
    await tail.close()


async def test_an_append_to_nowhere_certainly_failed(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=1)
    appender = await log.appender()
    async with asyncio.timeout(12):
        nowhere = appender.append("contract-no-such-topic", 0, b"x")
        ended = await asyncio.gather(
            nowhere, appender.append(topic, 7, b"x"), return_exceptions=True
        )
        assert [type(it) for it in ended] == [AppendFailed, AppendFailed]
        assert (await appender.append(topic, 0, b"fine")).offset == 0
    await appender.close()


async def test_a_closed_appender_fails_at_once(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    appender = await log.appender()
    flushed = appender.append(topic, 0, b"flushed by close")
    await appender.close()
    assert (await flushed).offset == 0
    with pytest.raises(AppendFailed):
        await appender.append(topic, 0, b"x")
    await appender.close()


async def test_topics_are_made_once_and_described(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=3, retention_ms="7200000")
    other = TopicSpec(topic, 1, 1, {})
    assert await log.create([other]) == []
    states = await log.describe([topic, "contract-no-such-topic"])
    assert set(states) == {topic}
    state = states[topic]
    assert (state.name, state.partitions, state.replication) == (topic, 3, 1)
    assert state.configs["retention.ms"] == "7200000"
    assert state.configs["message.timestamp.type"] == "LogAppendTime"
    assert state.topic_id


async def test_partitions_of_keys_are_those_of_java(log: Log, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=50)
    with pytest.raises(LogError):
        log.partition_of_key(topic, b"21")
    assert await log.partition_count(topic) == 50
    # the hashes that Kafka's own UtilsTest lists
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, value in hashes.items():
        assert log.partition_of_key(topic, key) == (value & 0x7FFFFFFF) % 50
    with pytest.raises(LogError):
        await log.partition_count("contract-no-such-topic")
