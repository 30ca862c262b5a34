"""The verdict on real processes turns red where the product has a fault: else it would prove nothing."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import ENGINE
from tests.faults.operation import POISON, Kind
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import view, violations

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(150)]

Harm = Callable[[RunningStack, Clients], Coroutine[None, None, None]]


async def kill_workers(stack: RunningStack, clients: Clients) -> None:
    for number in range(2):
        await asyncio.sleep(2.5)
        stack.signal(f"worker-{number}", signal.SIGKILL)


async def kill_a_replica(stack: RunningStack, clients: Clients) -> None:
    await asyncio.sleep(2.5)
    stack.signal("api-0", signal.SIGKILL)


async def race_for_keys(stack: RunningStack, clients: Clients) -> None:
    """Ten keys, each from two clients at once, who ask one replica each."""
    headers = {"Authorization": f"Bearer {stack.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=30.0, trust_env=False) as client:
        for number in range(10):
            body = {"model": "scripted", "prompt": f"race {number}", "max_tokens": 4}
            key = {"Idempotency-Key": f"race-{number}"}
            posts = [
                client.post(f"{it}/v1/completions", json=body, headers=key) for it in stack.replicas
            ]
            await asyncio.gather(*posts)


async def nothing(stack: RunningStack, clients: Clients) -> None:
    await asyncio.sleep(2.5)


async def cancel_and_kill(stack: RunningStack, clients: Clients) -> None:
    """Cancels are appended while the workers stand still; they are killed before they can hear them."""
    await asyncio.sleep(2.5)
    for name in ("worker-0", "worker-1"):
        stack.signal(name, signal.SIGSTOP)
    async with asyncio.TaskGroup() as group:
        for it in clients.history:
            if it.position and not it.ended_s:
                group.create_task(clients.cancel(it))
        await asyncio.sleep(1.0)
        for name in ("worker-0", "worker-1"):
            stack.signal(name, signal.SIGKILL)


async def send_poison(stack: RunningStack, clients: Clients) -> None:
    await asyncio.sleep(2.0)
    it = await clients.one("background", prompt=f"{stack.folder.name}: {POISON[1]}")
    assert it.outcome == "failed"


@dataclass(frozen=True, slots=True)
class Row:
    """A fault of the product, what brings it to light, and how the checker says it."""

    mutation: str
    harm: Harm
    rule: str
    words: str
    kinds: tuple[Kind, ...] = ("stream", "keyed")


ROWS = [
    Row("skip_the_fence", kill_workers, "I5", "no fence of its own before"),
    Row("fold_nothing", kill_workers, "I2", "goes on from"),
    Row("resume_off_by_one", kill_workers, "I2", "goes on from"),
    Row("commit_early", nothing, "I4", "was committed, and at"),
    Row("skip_one_on_resume", kill_a_replica, "I2", "visible:"),
    Row("every_claim_wins", race_for_keys, "I3", "lost, and it was published"),
    Row("poison_parks_its_neighbours", send_poison, "I9", "is parked as poison, and is none"),
    Row("forget_cancels_on_takeover", cancel_and_kill, "I8", "begun later, goes on with it"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.mutation)
async def test_a_mutated_product_is_told(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory, row: Row
) -> None:
    """On real processes as in the simulation, by the same rules."""
    stack = await asyncio.to_thread(
        RunningStack,
        tmp_path_factory.mktemp("mutated"),
        workers=2,
        engine_options=ENGINE,
        environ={
            "MUTATION": row.mutation,
            "PYTHONPATH": f"{ROOT / 'tests' / 'faults' / 'mutated'}:{ROOT}",
        },
    )
    try:
        clients = Clients(
            stack.replicas, stack.key, seed=801, kinds=row.kinds, max_tokens=(100, 200)
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run(60, 15.0))
            group.create_task(row.harm(stack, clients))
        await clients.close()
        told = violations(clients, await view(stack.bootstrap))
        assert [it for it in told if it.startswith(row.rule) and row.words in it], told[:20]
    finally:
        await asyncio.to_thread(stack.end)
