"""What the log in memory can do beyond the contract: faults, retention, absence, zombies."""

import asyncio
from typing import Any

import pytest

from topics.memory import FaultKind, MemoryLog
from topics.ports import (
    AppendFailed,
    AppendUnknown,
    CommitRefused,
    Committed,
    LogError,
    OffsetOutOfRange,
    Partition,
    TopicSpec,
)

HERE = Partition("t", 0)


async def made(append_timeout_seconds: float = 15.0) -> MemoryLog:
    log = MemoryLog(clock_ms=lambda: 1_000, append_timeout_seconds=append_timeout_seconds)
    await log.create([TopicSpec("t", 2, 1, {})])
    return log


def _hooks(told: list[tuple[str, int]]) -> dict[str, Any]:
    async def on_revoked(partitions: frozenset[Partition]) -> None:
        told.append(("revoked", len(partitions)))

    async def on_assigned(partitions: frozenset[Partition]) -> None:
        told.append(("assigned", len(partitions)))

    return {"on_revoked": on_revoked, "on_assigned": on_assigned}


def values(log: MemoryLog) -> list[bytes | None]:
    return [record.value for record in log.records(HERE)]


async def test_append_times_are_those_of_the_given_clock() -> None:
    log = await made()
    assert (await (await log.appender()).append("t", 0, b"x")).time_ms == 1_000


@pytest.mark.parametrize(
    ("kind", "stored"), [("ack_lost", [b"x"]), ("append_lost", []), ("append_late", [b"x"])]
)
async def test_an_append_in_doubt_ends_the_appender(kind: FaultKind, stored: list[bytes]) -> None:
    log = await made()
    fault = log.inject(kind, topic="t", delay_seconds=0.02)
    appender = await log.appender()
    with pytest.raises(AppendUnknown):
        await appender.append("t", 0, b"x")
    assert fault.fired
    assert values(log) == ([] if kind == "append_late" else stored)
    with pytest.raises(AppendFailed):
        await appender.append("t", 0, b"y")
    await asyncio.sleep(0.05)
    assert values(log) == stored
    assert (await (await log.appender()).append("t", 0, b"z")).offset == len(stored)


async def test_the_other_faults_leave_the_appender_as_it_was() -> None:
    log = await made()
    log.inject("refused", lambda it: it.value == b"no")
    log.inject("duplicate", lambda it: it.value == b"twice")
    late = log.inject("ack_delayed", lambda it: it.value == b"late", delay_seconds=0.05)
    appender = await log.appender()
    acks = [appender.append("t", 0, value) for value in (b"no", b"twice", b"late", b"plain")]
    await acks[3]
    assert late.fired
    assert not acks[2].done()
    ended = await asyncio.gather(*acks, return_exceptions=True)
    assert isinstance(ended[0], AppendFailed)
    assert values(log) == [b"twice", b"twice", b"late", b"plain"]
    offsets = [it.offset for it in ended[1:] if not isinstance(it, BaseException)]
    assert offsets == [0, 2, 3]


async def test_retention_moves_the_start_and_readers_below_it_are_told() -> None:
    log = await made()
    appender = await log.appender()
    await asyncio.gather(*(appender.append("t", 0, b"%d" % i) for i in range(5)))
    log.trim(HERE, 3)
    assert await log.start_offsets([HERE]) == {HERE: 3}
    assert await log.end_offsets([HERE]) == {HERE: 5}
    tail = await log.tail({HERE: 2})
    with pytest.raises(OffsetOutOfRange):
        await tail.read(max_wait_seconds=0.1)
    tail.assign({HERE: 3})
    assert [r.offset for r in await tail.read()] == [3, 4]


async def test_while_the_broker_is_away_questions_fail_and_appends_wait() -> None:
    log = await made()
    appender, tail = await log.appender(), await log.tail({HERE: 0})
    log.stop()
    ack = appender.append("t", 0, b"waits")
    with pytest.raises(LogError):
        await log.end_offsets([HERE])
    assert await tail.read(max_wait_seconds=0.05) == []
    assert not ack.done()
    log.start()
    assert (await ack).offset == 0
    assert [r.value for r in await tail.read()] == [b"waits"]


async def test_a_broker_that_stays_away_leaves_appends_in_doubt() -> None:
    log = await made(append_timeout_seconds=0.05)
    appender = await log.appender()
    log.stop()
    with pytest.raises(AppendUnknown):
        await appender.append("t", 0, b"x")
    log.start()
    with pytest.raises(AppendFailed):
        await appender.append("t", 0, b"y")
    assert values(log) == []


async def test_a_frozen_member_is_expelled_and_comes_back_as_a_zombie() -> None:
    log = await made()
    told: dict[str, list[tuple[str, int]]] = {"one": [], "two": []}

    one = await log.join("g", "t", **_hooks(told["one"]), session_timeout_seconds=0.1)
    await asyncio.sleep(0.02)
    held = one.assignment()
    one.freeze()
    two = await log.join("g", "t", **_hooks(told["two"]), session_timeout_seconds=0.1)
    await asyncio.sleep(0.25)
    assert two.assignment() == held
    assert told["one"] == [("assigned", 2)]  # it was told nothing, and believes to own all
    assert one.assignment() == held
    with pytest.raises(CommitRefused):
        await one.commit({q: Committed(1, "zombie") for q in held})
    one.thaw()
    await asyncio.sleep(0.1)
    assert told["one"] == [("assigned", 2), ("revoked", 2), ("assigned", 1)]
    assert len(two.assignment()) == 1
    await asyncio.gather(one.close(), two.close())
