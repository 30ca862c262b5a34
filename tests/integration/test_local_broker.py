"""The local cluster on the real Kafka: what it keeps, what it says, what it leaves behind."""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from topics.broker import BrokerFailed, LocalCluster

pytestmark = pytest.mark.kafka


@pytest_asyncio.fixture
async def cluster(kafka_libs: Path, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    one = LocalCluster(tmp_path / "one", libs=kafka_libs, heap_mb=256)
    yield one
    await one.stop()


async def _make_topic(address: str, name: str, replication: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, replication)])
    finally:
        await admin.close()


async def _append(address: str, topic: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def _read(address: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


@pytest.mark.timeout(90)
async def test_stop_and_crash_keep_log_and_address(cluster: LocalCluster) -> None:
    address = await cluster.start()
    await _make_topic(address, "kept", 1)
    await _append(address, "kept", [b"before a stop"])
    assert await cluster.restart() == address
    await _append(address, "kept", [b"before a crash"])
    (pid,) = cluster.pids().values()
    cluster.kill()
    assert await cluster.wait_exit() == 0
    assert await cluster.start() == address
    assert cluster.pids()[0] != pid
    assert await _read(address, "kept", 2) == [b"before a stop", b"before a crash"]
    await cluster.stop()
    await cluster.stop()
    assert cluster.pids() == {}


@pytest.mark.timeout(60)
async def test_a_second_cluster_on_the_same_data_is_refused(cluster: LocalCluster) -> None:
    await cluster.start()
    second = LocalCluster(cluster.log_file().parent.parent)
    with pytest.raises(BrokerFailed, match="another local Kafka already runs"):
        await second.start()
    assert len(cluster.pids()) == 1


async def test_a_taken_port_is_named(kafka_libs: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        cluster = LocalCluster(tmp_path, ports=[port], libs=kafka_libs)
        with pytest.raises(BrokerFailed, match=f"port {port} is not free"):
            await cluster.start()


async def test_missing_parts_are_named_with_their_remedy(kafka_libs: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed, match="make setup"):
        await LocalCluster(tmp_path / "a", libs=tmp_path / "nothing").start()
    with pytest.raises(BrokerFailed, match="INFERLOG_JAVA"):
        await LocalCluster(tmp_path / "b", java=tmp_path / "java", libs=kafka_libs).start()


async def test_a_java_that_fails_is_reported_with_its_log(kafka_libs: Path, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'write: No space left on device'\nexit 1\n")
    java.chmod(0o755)
    cluster = LocalCluster(tmp_path / "data", java=java, libs=kafka_libs)
    with pytest.raises(BrokerFailed, match=r"the disk is full: make room.*kafka\.log"):
        await cluster.start()
    assert cluster.pids() == {}


_PARENT = """
import asyncio, sys, pathlib
from topics.broker import LocalCluster
async def main():
    cluster = LocalCluster(pathlib.Path(sys.argv[1]), libs=pathlib.Path(sys.argv[2]), heap_mb=256)
    await cluster.start()
    print(*cluster.pids().values(), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_java_ends_with_a_killed_parent(kafka_libs: Path, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PARENT, str(tmp_path), str(kafka_libs)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    try:
        java = psutil.Process(int(await parent.stdout.readline()))
        assert java.is_running()
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    limit = time.monotonic() + 5
    while java.is_running() and java.status() != psutil.STATUS_ZOMBIE and time.monotonic() < limit:
        await asyncio.sleep(0.05)
    assert not java.is_running() or java.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_three_brokers_lose_one_and_keep_what_was_acknowledged(
    kafka_libs: Path, tmp_path: Path
) -> None:
    cluster = LocalCluster(tmp_path, brokers=3, libs=kafka_libs, heap_mb=256)
    try:
        address = await cluster.start()
        assert len(cluster.pids()) == 3
        await _make_topic(address, "kept", 3)
        await _append(address, "kept", [b"with three"])
        cluster.kill(0)
        await _append(address, "kept", [b"with two"])
        assert await cluster.start() == address
        assert len(cluster.pids()) == 3
        assert await _read(address, "kept", 2) == [b"with three", b"with two"]
    finally:
        await cluster.stop()
