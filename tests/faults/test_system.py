"""Faults of everything at once, of time, and of load (rows 16, 17, 19, 21 and 23 of the matrix)."""

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import ENGINE, Load
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import view, violations
from topics.broker import LocalCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]

BURST = 67  # the most requests in one second of the recorded hour in examples/


async def test_a_burst_of_67_in_one_second_is_taken_whole(stack: RunningStack, load: Load) -> None:
    """Row 16: what the recorded traffic does to a server at its worst."""
    async with load(stack, 401, requests=BURST, per_second=10_000.0, ok_share=1.0):
        pass


async def test_deadlines_in_the_queue_in_the_engine_and_of_who_waits(stack: RunningStack) -> None:
    """Row 17: 504 each time, within the deadline and its margin, and everything is committed."""
    headers = {"Authorization": f"Bearer {stack.key}", "x-stainless-retry-count": "0"}
    async with httpx.AsyncClient(headers=headers, timeout=30.0, trust_env=False) as client:

        async def post(prompt: str, tokens: int, seconds: str) -> tuple[int, str, float]:
            began_s = time.monotonic()
            answer = await client.post(
                f"{stack.replicas[0]}/v1/completions",
                json={"model": "scripted", "prompt": prompt, "max_tokens": tokens},
                headers={"Inferlog-Timeout": seconds},
            )
            return answer.status_code, answer.json()["error"]["code"], time.monotonic() - began_s

        answers = await asyncio.gather(
            post("too long", 4000, "2"),
            post("it never ends", 4, "2"),
            post("no time at all", 4, "0.000001"),
        )
    for status, code, seconds in answers:
        assert (status, code) == (504, "deadline_exceeded")
        assert seconds < 2 + 5 + 1
    found = await view(stack.bootstrap)
    assert found.uncommitted == {}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("order", list(itertools.permutations(("kafka", "worker", "api"))))
def test_all_at_once_then_up_again(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory, order: tuple[str, ...]
) -> None:
    """Row 23: all is killed while answers are under way; what was accepted is there after the start.

    The parts are killed in every order, a moment apart; `up` starts them as it does always.
    """
    folder = tmp_path_factory.mktemp("all-" + "-".join(order))
    asyncio.run(_kill_all_and_restart(folder, order))


async def _kill_all_and_restart(folder: Path, order: tuple[str, ...]) -> None:
    stack = await asyncio.to_thread(RunningStack, folder, workers=2, engine_options=ENGINE)
    clients = Clients(stack.replicas, stack.key, seed=403, kinds=("background", "stream"))
    running = asyncio.create_task(clients.run(60, 30.0))
    await asyncio.sleep(1.5)
    parts = stack.processes()
    for kind in order:
        for name, part in parts.items():
            if name.startswith(kind):
                part.kill()
        await asyncio.sleep(0.05)
    stack.process.kill()
    await asyncio.to_thread(stack.process.wait)
    for part in parts.values():
        await asyncio.to_thread(part.wait, 10)
    again = await asyncio.to_thread(
        RunningStack, folder, workers=2, engine_options=ENGINE, port=stack.port
    )
    try:
        await running
        await clients.close()
        wrong = violations(clients, await view(again.bootstrap))
        assert not wrong, "\n".join(wrong)
        assert any(it.outcome == "ok" and it.resumes for it in clients.history)
    finally:
        await asyncio.to_thread(again.end)


def faketime() -> Path | None:
    """The library that lets a process see another wall clock; its own waits keep their pace."""
    found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
    return found[0] if found else None


@pytest.fixture
def jumping_clock(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment whose wall clock is what a file says, and that file."""
    library = faketime()
    if library is None:
        pytest.skip("libfaketime is not here: `apt-get install faketime`")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    return (
        {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        },
        offset,
    )


@pytest.mark.slow
async def test_clocks_that_jump_an_hour_change_nothing(
    kafka_libs: Path,
    tmp_path: Path,
    jumping_clock: tuple[dict[str, str], Path],
    load: Load,
) -> None:
    """Row 19: API and workers jump forth and back; deadlines and claims go by the broker's time."""
    environ, offset = jumping_clock
    folder = tmp_path / "stack"
    folder.mkdir()
    # Kafka stays in its own time: it is the clock that counts
    cluster = LocalCluster(tmp_path / "kafka", libs=kafka_libs)
    bootstrap = await cluster.start()
    try:
        stack = await asyncio.to_thread(
            RunningStack,
            folder,
            workers=2,
            engine_options=ENGINE,
            bootstrap=bootstrap,
            environ=environ,
        )
        try:
            async with load(stack, 404, requests=300, ok_share=0.95):
                for jump in ("+3600", "-3600", "+0"):
                    await asyncio.sleep(3.5)
                    offset.write_text(f"{jump}\n")
        finally:
            await asyncio.to_thread(stack.end)
    finally:
        await cluster.stop()


RELEASE = "c449d0436908af018507ebe9a2f07c6ece898c33"
"""The release before: the pipeline, before failover was made fast and complete."""


@pytest.fixture
def release_before(tmp_path: Path) -> Path:
    """A tree of the release before."""
    here = Path(__file__).resolve().parents[2]
    tree = tmp_path / "before"
    git = shutil.which("git")
    if git is None or not (here / ".git").exists():
        pytest.skip("the release before is taken from the repository's history: no git here")
    tree.mkdir()
    archive = subprocess.run(
        [git, "-C", str(here), "archive", RELEASE], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"commit {RELEASE[:7]} is not in this clone (a shallow one?)")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_upgrade_and_the_way_back_under_load(
    kafka_libs: Path, tmp_path: Path, release_before: Path, load: Load
) -> None:
    """Row 21: workers of both releases side by side, the old one's events read by the new, and back."""
    folder = tmp_path / "stack"
    folder.mkdir()
    new = await asyncio.to_thread(RunningStack, folder, workers=1, engine_options=ENGINE)
    try:
        environ = {
            **os.environ,
            "PYTHONPATH": str(release_before),
            "INFERLOG_BOOTSTRAP": new.bootstrap,
            "INFERLOG_WORKER_ID": "before",
            "INFERLOG_ENGINE": "scripted",
            "INFERLOG_ENGINE_OPTION": "tokens_per_second=40;slots=1200",
            "INFERLOG_METRICS_PORT": "0",
            "INFERLOG_SESSION_TIMEOUT_SECONDS": "3",
        }
        for turn in range(2):
            async with load(new, 405 + turn, requests=300, ok_share=1.0):
                with (tmp_path / "before.log").open("ab") as out:
                    old = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "inferlog", "worker"),
                        env=environ,
                        cwd=release_before,
                        stdout=out,
                        stderr=out,
                    )
                try:
                    await asyncio.sleep(5.0)
                    # the new one goes, by force or politely, and the old one has all; then back
                    new.signal("worker-0", signal.SIGKILL if turn else signal.SIGTERM)
                    await asyncio.sleep(5.0)
                finally:
                    old.send_signal(signal.SIGKILL if turn else signal.SIGTERM)
                    await old.wait()
    finally:
        await asyncio.to_thread(new.end)
