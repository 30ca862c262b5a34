"""Both logs, each as a cluster that several components connect to."""

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import pytest_asyncio

from tests.broker_faults import sockets_to
from topics.broker import LocalCluster
from topics.kafka import KafkaLog
from topics.memory import MemoryLog
from topics.ports import Log, Member, Partition, TopicSpec

T = TypeVar("T")
Connect = Callable[[], Log]


_COMPLAINTS = ("Unclosed", "Task was destroyed", "never retrieved", "never awaited")


class MakeTopic(Protocol):
    """Makes a topic with a name of its own and returns the name."""

    def __call__(self, partitions: int = 2, **configs: str) -> Awaitable[str]: ...


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Each call is a component with a connection of its own to one cluster."""
    if request.param == "memory":
        shared = MemoryLog()
        return lambda: shared
    bootstrap: str = request.getfixturevalue("kafka_bootstrap")
    return lambda: KafkaLog(bootstrap, client_id="contract")


@pytest_asyncio.fixture
async def log(connect: Connect) -> AsyncIterator[Log]:
    """One connection, closed after the test."""
    log = connect()
    yield log
    await log.close()


@pytest.fixture
def make_topic(log: Log) -> MakeTopic:
    """Topics are not shared between tests."""

    async def make(partitions: int = 2, **configs: str) -> str:
        name = f"contract-{uuid.uuid4().hex[:12]}"
        wanted = {"message.timestamp.type": "LogAppendTime"}
        wanted |= {key.replace("_", "."): value for key, value in configs.items()}
        assert await log.create([TopicSpec(name, partitions, 1, wanted)]) == [name]
        return name

    return make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def faulty_cluster(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalCluster]:
    """A broker of our own: it is killed and frozen."""
    cluster = LocalCluster(tmp_path_factory.mktemp("faults"), libs=kafka_libs, heap_mb=256)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest_asyncio.fixture
async def faulty_log(
    faulty_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[KafkaLog]:
    """A log whose broker suffers; whatever befell it, nothing may be left behind by `close`."""
    await faulty_cluster.start()  # what the test before has killed
    before = asyncio.all_tasks()
    log = KafkaLog(
        faulty_cluster.bootstrap,
        client_id="faults",
        request_timeout_seconds=2.0,
        append_timeout_seconds=20.0,
    )
    yield log
    await log.close()
    await asyncio.sleep(0.05)  # a closed transport lets go of its socket in the next turn
    assert sockets_to(faulty_cluster) == []
    assert asyncio.all_tasks() - before == {asyncio.current_task()}
    gc.collect()  # what was forgotten complains now: warnings are errors, the rest is logged
    said = [it.message for it in caplog.get_records("call")]
    assert [it for it in said if any(word in it for word in _COMPLAINTS)] == []


@pytest_asyncio.fixture
async def faulty_topic(faulty_log: KafkaLog) -> str:
    name = f"faults-{uuid.uuid4().hex[:12]}"
    await faulty_log.create([TopicSpec(name, 2, 1, {"message.timestamp.type": "LogAppendTime"})])
    return name


class Closing(Protocol):
    """Closes something at the end of the test if the test came to no end itself; returns it."""

    def __call__(self, it: T, /) -> T: ...


@pytest_asyncio.fixture
async def closing(faulty_log: KafkaLog) -> AsyncIterator[Closing]:
    """A test that fails must not leave its clients to the tests after it. Closing twice is fine."""
    kept: list[Any] = []

    def keep(it: T) -> T:
        kept.append(it)
        return it

    yield keep
    await asyncio.gather(*(it.close() for it in kept))


Told = list[tuple[str, frozenset[Partition]]]


@pytest.fixture
def read_until() -> Callable[[Member, Callable[[], bool]], Awaitable[None]]:
    """Polls a member until something holds."""

    async def until(member: Member, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(25):
            while not condition():
                await member.read(max_wait_seconds=0.05)

    return until


@pytest.fixture
def join_group(
    faulty_log: KafkaLog,
    faulty_topic: str,
    read_until: Callable[[Member, Callable[[], bool]], Awaitable[None]],
    closing: Closing,
) -> Callable[[], Awaitable[tuple[Any, Told]]]:
    """A member that holds something, and what its hooks were told."""

    async def join() -> tuple[Any, Told]:
        told: Told = []

        async def on_revoked(partitions: frozenset[Partition]) -> None:
            told.append(("revoked", partitions))

        async def on_assigned(partitions: frozenset[Partition]) -> None:
            told.append(("assigned", partitions))

        member = await faulty_log.join(
            f"group-{faulty_topic}",
            faulty_topic,
            on_revoked=on_revoked,
            on_assigned=on_assigned,
            session_timeout_seconds=3.0,
        )
        closing(member)
        await read_until(member, lambda: bool(member.assignment()))
        return member, told

    return join
