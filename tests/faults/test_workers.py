"""Faults of workers (rows 1, 2, 9, 10, 11 and 20 of the matrix): another goes on, once."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import Load
from tests.faults.results import keep_row
from tests.faults.running_stack import RunningStack
from tests.running_up import clean_environ

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]

SESSION_SECONDS = 3.0


async def test_workers_killed_again_and_again(stack: RunningStack, load: Load) -> None:
    """Row 1: before the first token, in the middle, after the last one."""
    async with load(stack, 101, ok_share=1.0):
        for number in range(3):
            await asyncio.sleep(3.0)
            stack.signal(f"worker-{number % 2}", signal.SIGKILL)


@pytest.mark.slow
async def test_workers_killed_between_the_last_token_and_the_commit(
    stack: RunningStack, load: Load
) -> None:
    """Row 1: commits come up to 0.1 s behind the terminal, and so does the kill."""
    async with load(stack, 102, requests=300, max_tokens=(4, 8), ok_share=1.0) as clients:
        for number in range(3):
            await asyncio.sleep(3.0)
            await _until_one_ends(clients)
            stack.signal(f"worker-{number % 2}", signal.SIGKILL)


async def _until_one_ends(clients: Clients) -> None:
    def ended() -> int:
        return sum(1 for it in clients.history if it.ended_s)

    before = ended()
    while ended() == before:
        await asyncio.sleep(0.005)


async def test_a_zombie_wakes_up_and_is_not_heard(stack: RunningStack, load: Load) -> None:
    """Row 2: stopped past its session, it wakes up in the middle of its sentences."""
    async with load(stack, 103, per_second=27.0, ok_share=1.0):
        await asyncio.sleep(2.0)
        stack.signal("worker-0", signal.SIGSTOP)
        await asyncio.sleep(SESSION_SECONDS + 2.0)
        stack.signal("worker-0", signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_zombies_by_turns(stack: RunningStack, load: Load) -> None:
    """Row 2, several times, each worker, and an API replica for as long."""
    stopped = ["worker-0", "worker-1", "api-0"] * 3
    # whoever is published while its replica stands still for longer than a publish may take is told
    # that its outcome is unknown; nothing else may happen to anybody
    async with load(stack, 104, requests=1200, ok_share=0.98) as clients:
        for number, name in enumerate(stopped):
            await asyncio.sleep(1.0)
            pid = stack.signal(name, signal.SIGSTOP)
            await asyncio.sleep(SESSION_SECONDS + 1.0 + 0.3 * number)
            os.kill(pid, signal.SIGCONT)
    assert {it.error for it in clients.history} <= {None, "outcome_unknown"}
    assert clients.read is not None
    taken_over = sum(1 for it in clients.read.replies.answers.values() if len(it.starts) > 1)
    assert taken_over > 0
    keep_row(
        "zombies (row 2)",
        {
            "session_seconds": SESSION_SECONDS,
            "stopped": stopped,
            "requests": len(clients.history),
            "outcomes": dict(Counter(it.outcome for it in clients.history)),
            "taken_over_mid_sentence": taken_over,
            "events_said_behind_a_fence": clients.read.replies.hidden,
            "violations": len(clients.wrong),
        },
    )


@contextlib.contextmanager
def extra_worker(stack: RunningStack, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker beside those of `up`; killed at the end if it still runs."""
    environ = clean_environ() | {
        "INFERLOG_BOOTSTRAP": stack.bootstrap,
        "INFERLOG_WORKER_ID": name,
        "INFERLOG_ENGINE": "scripted",
        "INFERLOG_ENGINE_OPTION": "tokens_per_second=40;slots=1200",
        "INFERLOG_METRICS_PORT": "0",
        "INFERLOG_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
        "INFERLOG_DRAIN_SECONDS": "0.5",
    }
    with (folder / f"{name}.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferlog", "worker"], env=environ, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@pytest.mark.parametrize(
    "seconds", [6, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
async def test_a_storm_of_rebalances(
    stack: RunningStack, load: Load, tmp_path: Path, seconds: int
) -> None:
    """Row 9: a third worker comes and goes, politely or not, every second or two."""
    async with load(stack, 105, requests=10 * seconds, per_second=10.0, ok_share=1.0):
        loop = asyncio.get_running_loop()
        until_s, number = loop.time() + seconds, 0
        while loop.time() < until_s:
            with extra_worker(stack, tmp_path, f"guest-{number}") as guest:
                await asyncio.sleep(2.0 + 0.3 * (number % 4))
                guest.send_signal(signal.SIGKILL if number % 3 == 2 else signal.SIGTERM)
                await asyncio.to_thread(guest.wait, 20)
            number += 1


@pytest.mark.slow
async def test_answers_longer_than_sessions_outlast_a_rebalance(
    stack: RunningStack, load: Load, tmp_path: Path
) -> None:
    """Row 10: 15 s of tokens, sessions of 3 s, and a worker that joins and leaves meanwhile."""
    async with load(
        stack, 106, requests=20, kinds=("stream",), max_tokens=(600, 600), ok_share=1.0
    ):
        await asyncio.sleep(3.0)
        with extra_worker(stack, tmp_path, "guest-long") as guest:
            await asyncio.sleep(4.0)
            guest.send_signal(signal.SIGTERM)
            await asyncio.to_thread(guest.wait, 20)


async def test_the_oldest_never_ends_and_holds_nobody_up(stack: RunningStack, load: Load) -> None:
    """Row 11: others complete out of order; at its deadline it expires, and all is committed."""
    headers = {"Authorization": f"Bearer {stack.key}", "Inferlog-Timeout": "6"}
    body = {"model": "scripted", "prompt": "this never ends", "max_tokens": 4}
    async with httpx.AsyncClient(headers=headers, timeout=30.0, trust_env=False) as client:
        url = f"{stack.replicas[0]}/v1/completions"
        stalled = asyncio.create_task(client.post(url, json=body))
        await asyncio.sleep(0.3)
        async with load(stack, 107, requests=60, max_tokens=(4, 40), ok_share=1.0) as clients:
            await asyncio.sleep(4.5)
            assert sum(it.outcome == "ok" for it in clients.history) > 30
            assert not stalled.done()
        answer = await stalled
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2.0, 8.0])
@pytest.mark.parametrize("name", ["worker-1", "api-0"])
async def test_a_process_that_stands_still(
    stack: RunningStack, load: Load, name: str, seconds: float
) -> None:
    """Row 20: nothing of it runs for a while, shorter or longer than its session."""
    async with load(stack, 108, requests=300):
        await asyncio.sleep(2.0)
        pid = stack.signal(name, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
