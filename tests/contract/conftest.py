"""Both logs, each as a cluster that several components connect to."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest
import pytest_asyncio

from topics.kafka import KafkaLog
from topics.memory import MemoryLog
from topics.ports import Log, TopicSpec

Connect = Callable[[], Log]


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
