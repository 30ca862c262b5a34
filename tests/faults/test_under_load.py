"""Parts that die while requests run: nothing is lost, nothing comes twice, and all goes on by itself."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.clients import Clients
from tests.faults.running_stack import RunningStack, until
from tests.faults.verdict import view, violations

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]

REQUESTS = 240
PER_SECOND = 20.0


@pytest.fixture(scope="module")
def stack(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(tmp_path_factory.mktemp("faults"))
    yield running
    running.end()


async def judge(stack: RunningStack, clients: Clients) -> Counter[str]:
    """Fails with every broken promise; returns how the operations ended."""
    await clients.close()
    found = await view(stack.bootstrap)
    wrong = violations(clients.history, found)
    assert not wrong, "\n".join(wrong)
    return Counter(it.outcome for it in clients.history)


async def test_a_broker_that_dies_and_comes_back_loses_nothing(stack: RunningStack) -> None:
    clients = Clients(stack.replicas, stack.key, seed=1)
    load = asyncio.create_task(clients.run(REQUESTS, PER_SECOND))
    await asyncio.sleep(4.0)
    before = {name: it.pid for name, it in stack.processes().items()}
    stack.signal("kafka-1", signal.SIGKILL)
    until(lambda: "Kafka (node 1) ended" in stack.said(), 10, "the end of Kafka was not told")
    await load
    ended = await judge(stack, clients)
    after = {name: it.pid for name, it in stack.processes().items()}
    assert before.pop("kafka-1") != after.pop("kafka-1")
    assert before == after, "a process had to be started again"
    assert ended["ok"] > REQUESTS / 2, ended


async def test_a_broker_that_freezes_loses_nothing(stack: RunningStack) -> None:
    clients = Clients(stack.replicas, stack.key, seed=2)
    load = asyncio.create_task(clients.run(REQUESTS, PER_SECOND))
    await asyncio.sleep(3.0)
    stack.signal("kafka-1", signal.SIGSTOP)
    await asyncio.sleep(5.0)
    stack.signal("kafka-1", signal.SIGCONT)
    await load
    ended = await judge(stack, clients)
    assert ended["ok"] > REQUESTS / 2, ended


async def test_a_worker_that_dies_is_replaced_in_the_middle_of_sentences(
    stack: RunningStack,
) -> None:
    clients = Clients(stack.replicas, stack.key, seed=3)
    load = asyncio.create_task(clients.run(REQUESTS, PER_SECOND))
    await asyncio.sleep(4.0)
    pid = stack.signal("worker-0", signal.SIGKILL)
    await load
    ended = await judge(stack, clients)
    assert stack.processes()["worker-0"].pid != pid
    assert ended["ok"] == REQUESTS, ended


async def test_a_replica_that_dies_is_left_for_the_other(stack: RunningStack) -> None:
    clients = Clients(stack.replicas, stack.key, seed=4)
    load = asyncio.create_task(clients.run(REQUESTS, PER_SECOND))
    await asyncio.sleep(4.0)
    stack.signal("api-0", signal.SIGKILL)
    await load
    ended = await judge(stack, clients)
    assert ended["ok"] > REQUESTS / 2, ended
    assert any(it.resumes for it in clients.history if it.kind == "stream")
