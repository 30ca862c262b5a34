"""Starts that end half way, against a broker that says which requests it knows and then nothing."""

import asyncio
import gc
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from topics.kafka import KafkaLog
from topics.ports import LogError, Partition

METADATA, VERSIONS = 3, 18


@dataclass
class HalfBroker:
    """Answers ApiVersions and nothing else; `opened` and `closed` count its connections."""

    port: int = 0
    opened: int = 0
    closed: int = 0
    asked_metadata: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                api, version, correlation = struct.unpack(">hhi", (await reader.read(size))[:8])
                if api != VERSIONS:
                    self.asked_metadata += api == METADATA
                    continue
                assert version == 0
                answer = struct.pack(">ihi hhh", correlation, 0, 1, METADATA, 0, 5)
                writer.write(struct.pack(">i", len(answer)) + answer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            self.closed += 1
        finally:
            writer.close()


@pytest_asyncio.fixture
async def half() -> AsyncIterator[HalfBroker]:
    broker = HalfBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    yield broker
    server.close()
    await server.wait_closed()


async def gone(broker: HalfBroker) -> None:
    """Every connection that was opened is closed, with nobody having been garbage-collected."""
    gc.disable()
    try:
        async with asyncio.timeout(2):
            while broker.closed < broker.opened:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
        gc.collect()


async def test_a_start_that_waits_in_vain_for_metadata_lets_go_of_its_socket(
    half: HalfBroker,
) -> None:
    log = KafkaLog(f"127.0.0.1:{half.port}", request_timeout_seconds=0.5)
    with pytest.raises(LogError, match="no answer"):
        await log.appender()
    with pytest.raises(LogError):
        await log.end_offsets([Partition("any", 0)])
    await gone(half)
    assert half.asked_metadata >= 2
    await log.close()


async def test_a_start_that_is_cancelled_lets_go_of_its_socket(half: HalfBroker) -> None:
    log = KafkaLog(f"127.0.0.1:{half.port}", request_timeout_seconds=5.0)
    starting = asyncio.create_task(log.appender())
    async with asyncio.timeout(5):
        while not half.asked_metadata:
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await gone(half)
    await log.close()
