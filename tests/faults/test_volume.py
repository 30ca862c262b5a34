"""Many requests under many faults (`make soak`); what was measured is kept under benchmarks/results."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import Clients
from tests.faults.operation import Kind
from tests.faults.recovery import Kill, percentile, recoveries
from tests.faults.results import keep
from tests.faults.running_stack import RunningStack
from tests.faults.test_workers import extra_worker
from tests.faults.verdict import view, violations

pytestmark = [pytest.mark.kafka, pytest.mark.soak]


async def judged(stack: RunningStack, clients: Clients) -> dict[str, Any]:
    """Waits for the rest, then says what was broken and how all ended."""
    await clients.close()
    found = await view(stack.bootstrap)
    wrong = violations(clients, found)
    return {
        "requests": len(clients.history),
        "outcomes": dict(Counter(it.outcome for it in clients.history)),
        "errors": dict(Counter(it.error for it in clients.history if it.error)),
        "kinds": dict(Counter(it.kind for it in clients.history)),
        "requests_on_the_log": len(found.requests()),
        "violations": wrong[:50],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, p95 and largest, in seconds."""
    return {
        "orphans": len(values),
        "p50_seconds": round(percentile(values, 0.5), 3),
        "p95_seconds": round(percentile(values, 0.95), 3),
        "max_seconds": round(max(values), 3),
    }


@pytest.mark.timeout(1800)
async def test_50_workers_killed_over_20_000_requests(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each orphan goes on with its next token; nothing is lost, nothing comes twice."""
    options = ("tokens_per_second=40", "slots=1200")
    stack = await asyncio.to_thread(
        RunningStack, tmp_path_factory.mktemp("kills"), workers=2, engine_options=options
    )
    kills: list[Kill] = []
    try:
        clients = Clients(stack.replicas, stack.key, seed=501, max_tokens=(8, 48))
        load = asyncio.create_task(clients.run(20_000, 24.0))
        while not load.done():
            # each worker lives for twice this, or its supervisor would wait before it starts it again,
            # and nobody would stand by
            await asyncio.sleep(16.0)
            if not load.done():
                index = len(kills) % 2
                kills.append(Kill(f"-{index}", time.time() * 1000))
                stack.signal(f"worker-{index}", signal.SIGKILL)
        await load
        result = await judged(stack, clients)
        figures = spread(await recoveries(stack.bootstrap, kills))
    finally:
        await asyncio.to_thread(stack.end)
    keep("kills", {"seed": 501, "kills": len(kills), "recovery": figures, **result})
    assert result["violations"] == []
    assert len(kills) >= 50
    assert result["outcomes"] == {"ok": 20_000}


@pytest.mark.timeout(300)
async def test_a_dead_worker_without_a_supervisor_is_found_by_its_session(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Workers that nobody watches: the next token comes within the session timeout and two seconds."""
    folder = tmp_path_factory.mktemp("alone")
    options = ("tokens_per_second=40", "slots=1200")
    stack = await asyncio.to_thread(RunningStack, folder, engine_options=options)
    kills: list[Kill] = []
    try:
        clients = Clients(stack.replicas, stack.key, seed=502)
        load = asyncio.create_task(clients.run(1200, 15.0))
        for number in range(6):
            with extra_worker(stack, folder, f"alone-{number}") as guest:
                await asyncio.sleep(7.0)
                kills.append(Kill(f"alone-{number}", time.time() * 1000))
                guest.kill()
                await asyncio.to_thread(guest.wait, 10)
            await asyncio.sleep(6.0)
        await load
        result = await judged(stack, clients)
        figures = spread(await recoveries(stack.bootstrap, kills))
    finally:
        await asyncio.to_thread(stack.end)
    keep("kills_unwatched", {"seed": 502, "session_seconds": 3.0, "recovery": figures, **result})
    assert result["violations"] == []


SHORT: tuple[Kind, ...] = ("whole", "whole", "whole", "stream", "background", "keyed", "closed")


@pytest.mark.timeout(5400)
async def test_100_000_short_requests_with_faults_running(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Everything that can be killed or stopped is, by a seed, every ten seconds or so."""
    requests = int(os.environ.get("REQUESTS", "100000"))
    seed = int(os.environ.get("SEED", "503"))
    stack = await asyncio.to_thread(
        RunningStack,
        tmp_path_factory.mktemp("volume"),
        workers=2,
        engine_options=("tokens_per_second=100", "slots=1200"),
    )
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    try:
        clients = Clients(stack.replicas, stack.key, seed=seed, kinds=SHORT, max_tokens=(1, 6))
        load = asyncio.create_task(clients.run(requests, 110.0))
        while not load.done():
            await asyncio.sleep(chance.uniform(8.0, 14.0))
            if not load.done():
                faults[await harm(stack, chance)] += 1
        await load
        result = await judged(stack, clients)
    finally:
        await asyncio.to_thread(stack.end)
    keep("volume", {"seed": seed, "faults": dict(faults), **result})
    assert result["violations"] == []
    assert result["outcomes"]["ok"] > 0.8 * requests


async def harm(stack: RunningStack, chance: random.Random) -> str:
    """One fault, its end included; returns its name."""
    names = sorted(stack.processes())
    weights = [1 if name.startswith("kafka") else 4 for name in names]
    (name,) = chance.choices(names, weights)
    if chance.random() < 0.6:
        stack.signal(name, signal.SIGKILL)
        return f"kill {name}"
    pid = stack.signal(name, signal.SIGSTOP)
    await asyncio.sleep(chance.choice([0.5, 2.0, 5.0]))
    os.kill(pid, signal.SIGCONT)
    return f"stop {name}"
