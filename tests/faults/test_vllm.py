"""Rows 1, 2 and 3 of the matrix once more, on vLLM and a small real model: two workers of `up`."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import Load
from tests.faults.recovery import percentile
from tests.faults.results import keep_row
from tests.faults.running_stack import RunningStack
from tests.faults.watching import metrics

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

SESSION_SECONDS = 8.0
READY_SECONDS = 300.0
TOKENS = 64
STREAMS = 6


@pytest.fixture(scope="module")
def real(
    kafka_libs: Path, vllm_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Float32, in which a resumed answer is the one that would have been given."""
    running = RunningStack(
        tmp_path_factory.mktemp("vllm"),
        workers=2,
        engine="vllm",
        model=vllm_model_dir.name,
        engine_options=("dtype=float32", "max_num_seqs=4", "max_model_len=1024"),
        session_timeout_seconds=SESSION_SECONDS,
        ready_seconds=READY_SECONDS,
        more=("--model", str(vllm_model_dir)),
    )
    yield running
    running.end()


def gauge(text: str, name: str) -> float:
    """The sum of a gauge over its labels."""
    return sum(float(it) for it in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def per_worker(stack: RunningStack, name: str) -> dict[str, float]:
    """A gauge of each worker that answers."""
    texts = await metrics(stack)
    return {it: gauge(text, name) for it, text in texts.items() if it.startswith("worker")}


async def until_both_serve(stack: RunningStack) -> None:
    """Both workers own partitions: a new vLLM loads for half a minute before it does."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            owned = await per_worker(stack, "inferlog_partitions_owned")
            if len(owned) == 2 and all(owned.values()):
                return
            await asyncio.sleep(0.5)


async def speaking(stack: RunningStack, clients: Clients) -> str:
    """The worker that runs most of the streams, once they are in the middle of their answers."""
    async with asyncio.timeout(120):
        while sum(it.position >= 4 for it in clients.history) < STREAMS:
            await asyncio.sleep(0.02)
    running = await per_worker(stack, "inferlog_requests_running")
    return max(running, key=lambda it: running[it])


def kept(row: str, clients: Clients) -> None:
    """Some went on elsewhere, or on another engine; every one is whole, by the log and its client."""
    assert clients.read is not None
    mine = {it.request_id for it in clients.history}
    answers = [it for (_, name), it in clients.read.replies.answers.items() if name in mine]
    gone_on = sum(it.runs > 1 for it in answers)
    assert gone_on > 0
    assert [it.position for it in clients.history] == [TOKENS] * STREAMS
    pauses_s = [it.longest_pause_s for it in clients.history]
    keep_row(
        f"vLLM: {row}",
        {
            "streams": len(clients.history),
            "gone_on_mid_sentence": gone_on,
            "pause_p50_seconds": percentile(pauses_s, 0.5),
            "pause_max_seconds": max(pauses_s),
            "session_seconds": SESSION_SECONDS,
        },
    )


GREEDY = {"temperature": 0.0, "logit_bias": {"2": -100}}
LOAD = {
    "requests": STREAMS,
    "per_second": 50.0,
    "kinds": ("stream",),
    "max_tokens": (TOKENS, TOKENS),
    "ok_share": 1.0,
    "parameters": GREEDY,
}


async def test_a_killed_worker_with_a_real_model(real: RunningStack, load: Load) -> None:
    """Row 1: the other worker goes on with every sentence, from the next token."""
    await until_both_serve(real)
    async with load(real, 701, **LOAD) as clients:
        real.signal(await speaking(real, clients), signal.SIGKILL)
    kept("a worker killed (row 1)", clients)


async def test_a_zombie_with_a_real_model(real: RunningStack, load: Load) -> None:
    """Row 2: it stands still past its session, and wakes up."""
    await until_both_serve(real)
    async with load(real, 702, **LOAD) as clients:
        pid = real.signal(await speaking(real, clients), signal.SIGSTOP)
        await asyncio.sleep(SESSION_SECONDS + 3.0)
        os.kill(pid, signal.SIGCONT)
    kept("a worker stopped past its session (row 2)", clients)


async def test_a_dead_engine_of_a_real_model(real: RunningStack, load: Load) -> None:
    """Row 3: vLLM's own process dies; its worker lives, replaces it, and goes on from the log."""
    await until_both_serve(real)
    async with load(real, 703, **LOAD) as clients:
        name = await speaking(real, clients)
        worker = real.processes()[name]
        (core,) = [it for it in worker.children(recursive=True) if "EngineCore" in it.name()]
        core.kill()
        await asyncio.to_thread(psutil.wait_procs, [core], 10)
    assert worker.is_running()
    kept("an engine killed (row 3)", clients)
