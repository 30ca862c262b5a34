"""Faults of brokers and of the network to them (rows 6, 7, 8 and 18 of the matrix)."""

import asyncio
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient

from tests.faults.conftest import ENGINE, Load
from tests.faults.recovery import percentile
from tests.faults.results import keep_row
from tests.faults.running_stack import RunningStack, until
from tests.faults.toxiproxy import Direction, Toxiproxy, server_file
from topics.broker import LocalCluster
from topics.broker_process import free_ports
from topics.catalogue import REPLIES

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]


async def test_a_broker_that_dies_and_comes_back_loses_nothing(
    stack: RunningStack, load: Load
) -> None:
    """Row 6: everybody meets it again by itself, no process has to be started anew."""
    # half of the ten seconds there is no broker: what is asked then is refused, or in doubt
    async with load(stack, 301, ok_share=0.3):
        await asyncio.sleep(3.0)
        before = {name: it.pid for name, it in stack.processes().items()}
        stack.signal("kafka-1", signal.SIGKILL)
        until(lambda: "Kafka (node 1) ended" in stack.said(), 10, "the end of Kafka was not told")
    after = {name: it.pid for name, it in stack.processes().items()}
    assert before.pop("kafka-1") != after.pop("kafka-1")
    assert before == after


@pytest.mark.parametrize(
    "seconds",
    [5.0, 15.0, pytest.param(60.0, marks=pytest.mark.timeout(300))],
)
@pytest.mark.slow
async def test_a_broker_that_freezes_loses_nothing(
    stack: RunningStack, load: Load, seconds: float
) -> None:
    """Row 6: its sockets stay open and nobody answers."""
    # what is asked while nobody answers is refused, or in doubt
    ok_share = 0.3 if seconds < 60 else 0.0
    async with load(stack, 302, requests=max(200, int(20 * seconds)), ok_share=ok_share):
        await asyncio.sleep(3.0)
        pid = stack.signal("kafka-1", signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def three(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Three brokers with replication 3."""
    more = ("--broker-heap-mb", "256")
    running = RunningStack(
        tmp_path_factory.mktemp("three"), workers=2, brokers=3, engine_options=ENGINE, more=more
    )
    yield running
    running.end()


async def reply_leaders(bootstrap: str) -> dict[int, list[int]]:
    """Broker -> the reply partitions it leads; once every replica is in sync again."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(60):
            while True:
                (topic,) = await admin.describe_topics([REPLIES])
                if all(len(it["isr"]) == 3 for it in topic["partitions"]):
                    break
                await asyncio.sleep(0.5)
    finally:
        await admin.close()
    led: dict[int, list[int]] = {}
    for it in topic["partitions"]:
        led.setdefault(it["leader"], []).append(it["partition"])
    return led


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_leader_that_dies_is_followed_by_another(
    three: RunningStack, load: Load, turn: int
) -> None:
    """Row 6: it leads most of the replies; nothing acknowledged is lost, and nobody waits for 5 s."""
    led = await reply_leaders(three.bootstrap)
    node = max(led, key=lambda it: len(led[it]))
    async with load(three, 310 + turn, kinds=("stream",), max_tokens=(60, 120)) as clients:
        reading = await clients.reading(25)
        for it in reading:
            it.longest_pause_s = 0.0
        three.signal(f"kafka-{node}", signal.SIGKILL)
    pauses_s = [it.longest_pause_s for it in reading]
    keep_row(
        f"the leader of the replies killed (row 6), turn {turn}",
        {
            "brokers": 3,
            "reply_partitions_it_led": len(led[node]),
            "open_streams": len(reading),
            "violations": len(clients.wrong),
            "pause_p50_seconds": percentile(pauses_s, 0.5),
            "pause_max_seconds": max(pauses_s),
            "outcomes": dict(Counter(it.outcome for it in clients.history)),
        },
    )
    assert max(pauses_s) <= 5.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def behind_proxy(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningStack, Toxiproxy]]:
    """A stack that reaches its broker through Toxiproxy alone."""
    program = server_file()
    if program is None:
        pytest.skip("Toxiproxy is not built: it needs Go (`apt-get install golang`)")
    (port,) = free_ports(1)
    proxy = Toxiproxy(program, port)
    cluster = LocalCluster(
        tmp_path_factory.mktemp("kafka"),
        ports=[port],
        advertised_ports=[proxy.port],
        libs=kafka_libs,
    )
    await cluster.start()
    stack = await asyncio.to_thread(
        RunningStack,
        tmp_path_factory.mktemp("proxied"),
        workers=2,
        engine_options=ENGINE,
        bootstrap=f"127.0.0.1:{proxy.port}",
    )
    try:
        yield stack, proxy
    finally:
        await asyncio.to_thread(stack.end)
        await cluster.stop()
        proxy.close()


TOXICS: list[tuple[str, Direction, dict[str, Any], float]] = [
    ("latency", "downstream", {"latency": 300, "jitter": 200}, 5.0),
    ("reset_peer", "downstream", {"timeout": 0}, 3.0),
    ("timeout", "upstream", {"timeout": 0}, 5.0),  # a black hole: what is said is swallowed
    ("timeout", "downstream", {"timeout": 0}, 5.0),  # half-open: stored, and never acknowledged
    ("bandwidth", "downstream", {"rate": 64}, 5.0),
    ("slicer", "upstream", {"average_size": 40, "size_variation": 20, "delay": 200}, 4.0),
    ("limit_data", "downstream", {"bytes": 20_000}, 4.0),  # acks lost in the middle of an answer
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "direction", "attributes", "seconds"), TOXICS)
async def test_a_sick_network(
    behind_proxy: tuple[RunningStack, Toxiproxy],
    load: Load,
    kind: str,
    direction: Direction,
    attributes: dict[str, Any],
    seconds: float,
) -> None:
    """Rows 7 and 8: slow, cut, swallowed; stored records whose acks are lost, and retries."""
    stack, proxy = behind_proxy
    async with load(stack, 320, ok_share=0.3):
        await asyncio.sleep(2.0)
        with proxy.toxic(kind, direction, **attributes):
            await asyncio.sleep(seconds)


@pytest.mark.slow
async def test_acks_lost_for_a_moment_again_and_again(
    behind_proxy: tuple[RunningStack, Toxiproxy], load: Load
) -> None:
    """Row 8: connections end between what was stored and its ack."""
    stack, proxy = behind_proxy
    async with load(stack, 321, requests=300, ok_share=0.3):
        for _ in range(5):
            await asyncio.sleep(2.0)
            with proxy.toxic("timeout", "downstream", timeout=0):
                await asyncio.sleep(0.1)
                proxy.cut()
            proxy.mend()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here (root is needed): {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(
    kafka_libs: Path, small_disk: Path, load: Load
) -> None:
    """Row 18: the broker ends itself on a full disk; with room again everything goes on."""
    stack = await asyncio.to_thread(RunningStack, small_disk, engine_options=ENGINE)
    try:
        async with load(stack, 330, ok_share=0.2):
            await asyncio.sleep(3.0)
            filler = small_disk / "filler"
            with filler.open("wb") as out:
                try:
                    while out.write(b"\0" * 1024 * 1024):
                        pass
                except OSError:
                    pass
            await asyncio.sleep(5.0)
            filler.unlink()
    finally:
        await asyncio.to_thread(stack.end)
