import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inferlog.backoff import Backoff
from inferlog.broker import SupervisedCluster
from inferlog.problems import CommandFailed, WrongUsage
from inferlog.supervisor import (
    LOG_BYTES_MAX,
    Child,
    ChildSpec,
    Supervisor,
    keep_log_bounded,
    last_error,
)


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_seconds=1, longest_seconds=5)
    assert [backoff.next_pause(0.1) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.crashes == 5


def test_a_long_run_forgets_earlier_crashes() -> None:
    backoff = Backoff(first_seconds=1, longest_seconds=60, forgiven_after_seconds=30)
    assert [backoff.next_pause(s) for s in (0, 0, 29.9, 30, 0)] == [1, 2, 4, 1, 2]


def test_crashing_for_days_does_not_overflow() -> None:
    backoff = Backoff()
    assert [backoff.next_pause(0) for _ in range(5000)][-1] == backoff.longest_seconds


class Program(Child):
    """A child that runs a line of Python in place of `inferlog`."""

    async def launch(self) -> None:
        path = self.spec.log_file
        with path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", *self.spec.arguments),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.starts += 1


def program(tmp_path: Path, code: str, stop_seconds: float = 5.0) -> tuple[Program, list[str]]:
    said: list[str] = []
    spec = ChildSpec(
        name="worker-0",
        arguments=(code,),
        environ={},
        log_file=tmp_path / "worker-0.log",
        stop_seconds=stop_seconds,
    )
    return Program(spec, said.append, Backoff(first_seconds=0.01)), said


async def wait_until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def wait_for(path: Path) -> None:
    await wait_until(path.exists)


async def test_a_crashed_child_is_started_again_and_told(tmp_path: Path) -> None:
    child, said = program(tmp_path, "import os; os.kill(os.getpid(), 9)")
    child.was_ready = True
    watching = asyncio.create_task(child.watch())
    async with asyncio.timeout(20):
        while child.starts < 3:
            await asyncio.sleep(0.01)
    await child.kill()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert said[0].startswith("worker-0 was ended by SIGKILL; starting it again in 0.0 s")


async def test_its_process_id_is_that_of_the_present_run_and_each_change_is_told(
    tmp_path: Path,
) -> None:
    go = tmp_path / "go"
    code = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    child, _ = program(tmp_path, code)
    told: list[tuple[str, int | None]] = []
    child.on_launch = lambda: told.append(("launch", child.pid))
    child.on_death = lambda pid: told.append((f"death of {pid}", child.pid))
    child.was_ready = True
    watching = asyncio.create_task(child.watch())
    await wait_until(lambda: child.starts == 1)
    first = child.pid
    go.touch()
    await wait_until(lambda: child.starts == 2)
    await child.kill()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert told[:2] == [("launch", first), (f"death of {first}", None)]
    assert first is not None
    assert told[2][0] == "launch"
    assert told[2][1] not in {None, first}


async def test_one_that_is_held_back_starts_when_it_may_and_can_be_ended_before(
    tmp_path: Path,
) -> None:
    child, _ = program(tmp_path, "import time; time.sleep(600)")
    child.may_start.clear()
    watching = asyncio.create_task(child.watch())
    await asyncio.sleep(0.1)
    assert (child.starts, child.pid) == (0, None)
    child.may_start.set()
    await wait_until(lambda: child.starts == 1)
    await child.kill()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    never, _ = program(tmp_path, "import time; time.sleep(600)")
    never.may_start.clear()
    watching = asyncio.create_task(never.watch())
    await never.stop()
    await never.kill()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert never.starts == 0


class OneNode:
    """A cluster of one node that ends once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ended = asyncio.Event()

    async def start(self) -> str:
        self.events.append("started")
        return "127.0.0.1:9"

    async def wait_exit(self) -> int:
        await self.ended.wait()
        self.ended.clear()
        self.events.append("ended")
        return 0

    def log_file(self, node: int) -> Path:
        return Path(f"node-{node}.log")


async def test_kafka_s_changes_of_process_are_told_as_well() -> None:
    node = OneNode()
    cluster = SupervisedCluster(node, lambda _: None, lambda: node.events.append("told"))  # type: ignore[arg-type]
    watching = asyncio.create_task(cluster.watch())
    node.ended.set()
    await wait_until(lambda: len(node.events) >= 4)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert node.events == ["ended", "told", "started", "told"]


async def test_what_can_never_work_is_not_tried_again(tmp_path: Path) -> None:
    child, _ = program(tmp_path, "import sys; print('error: no such option'); sys.exit(2)")
    with pytest.raises(WrongUsage, match="worker-0 cannot run: no such option"):
        await child.watch()
    assert child.starts == 1


async def test_what_never_came_up_is_given_up(tmp_path: Path) -> None:
    child, _ = program(tmp_path, "import sys; print('error: no broker'); sys.exit(1)")
    with pytest.raises(CommandFailed, match="5 times while starting: no broker"):
        await child.watch()
    assert child.starts == 5


async def test_a_child_that_does_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    ready = tmp_path / "pid"
    code = (
        "import os, signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sub = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"part = pathlib.Path({str(tmp_path / 'part')!r}); part.write_text(str(sub.pid))\n"
        f"part.rename({str(ready)!r})\n"
        "time.sleep(600)\n"
    )
    child, said = program(tmp_path, code, stop_seconds=0.1)
    watching = asyncio.create_task(child.watch())
    await wait_for(ready)
    grandchild = int(ready.read_text())
    await child.stop()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert child.pid is None
    assert "killed" in said[-1]
    async with asyncio.timeout(5):
        while _runs(grandchild):
            await asyncio.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_stopping_and_killing_twice_is_harmless(tmp_path: Path) -> None:
    supervisor = Supervisor([], lambda _: None)
    supervisor.start()
    await supervisor.stop()
    await supervisor.kill()
    await supervisor.kill()
    assert supervisor.pids() == {}


def test_a_log_that_grew_too_large_is_moved_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "api-0.log"
    with path.open("ab") as writer:
        writer.write(b"x" * (LOG_BYTES_MAX + 1))
        writer.flush()
        keep_log_bounded(path)
        writer.write(b"new")
        writer.flush()
        assert os.fstat(writer.fileno()).st_size == 3
    assert path.read_bytes() == b"new"
    assert (tmp_path / "api-0.log.1").stat().st_size == LOG_BYTES_MAX + 1


def test_the_reason_is_found_in_a_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_error(path) == f"see {path}"
    path.write_text('{"level": "info"}\nerror: the disk is full\n{"level": "info"}\n')
    assert last_error(path) == "the disk is full"
    path.write_text('{"level": "info"}\n{"level": "error", "event": "x"}\n{"level": "info"}\n')
    assert '"event": "x"' in last_error(path)
