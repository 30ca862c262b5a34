"""What a replica learns from `workers`; here: what it may conclude about its own clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.limits import Limits
from producer_api import worker_directory
from producer_api.worker_directory import WorkerDirectory
from runtime.clock import BrokerClock
from topics.catalogue import WORKERS, TopicSettings, catalogue
from topics.memory import MemoryAppender, MemoryLog
from topics.ports import LogError, Partition, Record
from topics.read_size import READ_BYTES_MAX, record_bytes

LIMITS = Limits(clock_skew_seconds=10.0)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    def wall_ms(self) -> int:
        return self.ms


@asynccontextmanager
async def directory(log: MemoryLog, clock: BrokerClock) -> AsyncIterator[WorkerDirectory]:
    await log.create(catalogue("default", TopicSettings()))
    it = WorkerDirectory(log, clock, LIMITS)
    await it.start()
    await asyncio.sleep(0.01)
    yield it
    await it.close()


async def place() -> tuple[Hands, MemoryLog, MemoryAppender]:
    broker = Hands(1_000_000_000)
    log = MemoryLog(clock_ms=broker.wall_ms)
    await log.create(catalogue("default", TopicSettings()))
    return broker, log, await log.appender()


async def hear(log: MemoryLog) -> None:
    appender = await log.appender()
    await appender.append(WORKERS, 0, None, key=b"w")
    await asyncio.sleep(0.05)
    await appender.close()


@pytest.mark.parametrize(
    ("ahead_ms", "corrected"), [(3_600_000, True), (5_000, False), (-5_000, True)]
)
async def test_a_clock_that_is_behind_or_further_ahead_than_clocks_may_be_is_corrected(
    ahead_ms: int, corrected: bool
) -> None:
    broker = Hands(1_000_000_000)
    clock = BrokerClock(Hands(broker.ms + ahead_ms), LIMITS.clock_skew_seconds)
    log = MemoryLog(clock_ms=broker.wall_ms)
    async with directory(log, clock):
        await hear(log)
        assert (abs(clock.now_ms() - broker.ms) <= 1_000) is corrected


async def test_a_record_that_is_read_after_a_sleep_says_nothing_of_the_clock() -> None:
    broker, own = Hands(1_000_000_000), Hands(1_000_000_000)
    clock = BrokerClock(own, LIMITS.clock_skew_seconds)
    log = MemoryLog(clock_ms=broker.wall_ms)
    async with directory(log, clock):
        appender = await log.appender()
        await appender.append(WORKERS, 0, None, key=b"w")
        own.ms += 60_000  # stopped, before the record that has come in was looked at
        await asyncio.sleep(0.05)
        assert clock.now_ms() == own.ms
        await appender.close()


async def test_what_was_there_at_the_start_says_nothing_of_the_clock_however_late_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_directory, "CATCH_UP_SECONDS", 0.0)
    broker, log, appender = await place()
    weight = record_bytes(Record(WORKERS, 0, 0, 0, b"w", None, ()))
    count = 5 * READ_BYTES_MAX // weight
    for _ in range(count):
        await appender.append(WORKERS, 0, None, key=b"w")
    broker.ms += 60_000  # nobody has spoken since
    clock = BrokerClock(broker, LIMITS.clock_skew_seconds)
    it = WorkerDirectory(log, clock, LIMITS)
    await it.start()
    async with asyncio.timeout(5):
        while it._tail is None or it._tail.position(worker_directory.HERE) < count:
            await asyncio.sleep(0.01)
    assert clock.now_ms() == broker.ms
    assert not clock.observed
    await it.close()
    await appender.close()


async def test_what_was_said_while_the_beginning_was_read_says_nothing_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_directory, "CATCH_UP_SECONDS", 0.0)
    broker, log, appender = await place()
    await appender.append(WORKERS, 0, None, key=b"w" * READ_BYTES_MAX)  # a read of its own
    ask = log.end_offsets

    async def slow(partitions: list[Partition]) -> dict[Partition, int]:
        ends = await ask(partitions)
        if not asked:  # between the question and the first read, which takes a minute
            await appender.append(WORKERS, 0, None, key=b"w")
            broker.ms += 60_000
        asked.append(ends)
        return ends

    asked: list[dict[Partition, int]] = []
    monkeypatch.setattr(log, "end_offsets", slow)
    clock = BrokerClock(broker, LIMITS.clock_skew_seconds)
    it = WorkerDirectory(log, clock, LIMITS)
    await it.start()
    await asyncio.sleep(0.05)
    assert clock.now_ms() == broker.ms
    assert not clock.observed
    await it.close()
    await appender.close()


async def test_who_cannot_ask_where_the_end_is_reads_on_and_lets_the_clock_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Hands(1_000_000_000)
    clock = BrokerClock(Hands(broker.ms + 3_600_000), LIMITS.clock_skew_seconds)
    log = MemoryLog(clock_ms=broker.wall_ms)
    ask, asked, is_away = log.end_offsets, 0, True

    async def answered_once(partitions: list[Partition]) -> dict[Partition, int]:
        nonlocal asked
        asked += 1
        if is_away and asked > 1:
            raise LogError("away")
        return await ask(partitions)

    monkeypatch.setattr(log, "end_offsets", answered_once)
    async with directory(log, clock) as it:
        await hear(log)
        assert it._tail is not None
        assert it._tail.position(worker_directory.HERE) == 1
        assert clock.now_ms() == broker.ms + 3_600_000
        is_away = False
        await hear(log)  # the question before this read had failed
        await hear(log)
        assert abs(clock.now_ms() - broker.ms) <= 1_000
        known, asked = asked, 0
        await hear(log)
        assert (known > 1, asked) == (True, 0), "a clock that is known asks nobody"


async def away(_: object) -> dict[Partition, int]:
    raise LogError("away")


async def test_who_falls_off_the_log_while_nobody_says_where_it_begins_reads_on_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_directory, "RETRY_SECONDS", 0.01)
    broker = Hands(1_000_000_000)
    log = MemoryLog(clock_ms=broker.wall_ms)
    async with directory(log, BrokerClock(broker, LIMITS.clock_skew_seconds)) as it:
        assert it._tail is not None
        with monkeypatch.context() as patched:
            patched.setattr(log, "start_offsets", away)
            it._tail.assign({worker_directory.HERE: 10**6})  # where there is nothing
            await hear(log)
        await hear(log)
        async with asyncio.timeout(5):
            while it._tail.position(worker_directory.HERE) != 2:
                await asyncio.sleep(0.01)
