"""Child processes: started, watched, started again after a crash, and ended with all they started.

Each child leads a process group of its own, so that Ctrl-C reaches only the supervisor, which ends
them in order; and each asks the kernel to be told when the supervisor dies (see `launch`).
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inferlog.backoff import Backoff
from inferlog.problems import CommandFailed, WrongUsage
from runtime.service import EXIT_USAGE

LOG_BYTES_MAX = 16 * 1024 * 1024
LOG_LOOK_SECONDS = 10.0
START_CRASHES_MAX = 5
"""Crashes in a row, before the first success, after which starting is given up."""

PARENT_PID = "INFERLOG_PARENT_PID"
METRICS_PORT_HELD = "INFERLOG_METRICS_PORT_HELD"
"""Tells a child that its metrics port is bound by the supervisor, with whom it must share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A child: `arguments` of the `inferlog` command, its whole environment, and its log file.

    `stop_seconds`: how long it may take to end by itself after SIGTERM.
    """

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    log_file: Path
    stop_seconds: float


Report = Callable[[str], None]


class Child:
    """One child and its restarts. `watch` runs as long as the child should.

    `on_launch` is called after each start, `on_death` with the process id of each run that ended by
    itself, before the next one starts. `may_start` may be cleared to hold the first start back.
    """

    def __init__(self, spec: ChildSpec, report: Report, backoff: Backoff | None = None) -> None:
        self.spec = spec
        self.was_ready = False
        self.starts = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.on_launch: Callable[[], None] | None = None
        self.on_death: Callable[[int], None] | None = None
        self._report = report
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._ending = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def launch(self) -> None:
        """Starts the process once."""
        path = self.spec.log_file
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_log_bounded(path)
        with path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "inferlog", *self.spec.arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.spec.environ, PARENT_PID: str(os.getpid())},
                start_new_session=True,
            )
        self.starts += 1

    async def watch(self) -> None:
        """Starts the child, and again after each crash. Raises when that can never help."""
        await self.may_start.wait()
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            began_s = loop.time()
            await self.launch()
            assert self._process is not None
            if self.on_launch is not None:
                self.on_launch()
            code = await self._process.wait()
            end_group(self._process.pid)
            if self._ending.is_set():
                break
            if self.on_death is not None:
                self.on_death(self._process.pid)
            self._give_up_if_hopeless(code)
            pause_s = self._backoff.next_pause(loop.time() - began_s)
            self._report(
                f"{self.spec.name} {_ended(code)}; starting it again in {pause_s:.1f} s "
                f"(log: {self.spec.log_file})"
            )
            await asyncio.sleep(pause_s)
        # ended on purpose: `stop` of the supervisor is under way, which cancels this task
        await asyncio.Event().wait()

    def _give_up_if_hopeless(self, code: int) -> None:
        said = last_error(self.spec.log_file)
        if code == EXIT_USAGE:
            raise WrongUsage(f"{self.spec.name} cannot run: {said}")
        if not self.was_ready and self._backoff.crashes + 1 >= START_CRASHES_MAX:
            raise CommandFailed(
                f"{self.spec.name} {_ended(code)} {START_CRASHES_MAX} times while starting: {said}"
            )

    async def stop(self) -> None:
        """SIGTERM, then after the limit SIGKILL for its whole group. Idempotent."""
        self._ending.set()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self.spec.stop_seconds):
                    await process.wait()
            except TimeoutError:
                self._report(
                    f"{self.spec.name} did not end within {self.spec.stop_seconds:.0f} s: killed"
                )
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL for its whole group, and waits for it."""
        self._ending.set()
        if self._process is not None:
            end_group(self._process.pid)
            await self._process.wait()


class Supervisor:
    """Several children at once."""

    def __init__(self, specs: Sequence[ChildSpec], report: Report) -> None:
        self.children = {spec.name: Child(spec, report) for spec in specs}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> list[asyncio.Task[None]]:
        """Starts all; the tasks end only by an error that restarts cannot mend."""
        self._tasks = [
            asyncio.create_task(child.watch(), name=f"watch-{name}")
            for name, child in self.children.items()
        ]
        self._tasks.append(asyncio.create_task(self._bound_logs(), name="bound-logs"))
        return self._tasks

    def pids(self) -> dict[str, int]:
        """Name -> process id, of those that run."""
        return {name: pid for name, child in self.children.items() if (pid := child.pid)}

    async def stop(self, names: Sequence[str] | None = None) -> None:
        """Ends these (or all) gracefully, side by side. Idempotent."""
        chosen = self.children if names is None else names
        await asyncio.gather(*(self.children[name].stop() for name in chosen))

    async def kill(self) -> None:
        """Ends all at once, and everything that this object started. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self.children.values()))

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_LOOK_SECONDS)
            for child in self.children.values():
                keep_log_bounded(child.spec.log_file)


def keep_log_bounded(path: Path) -> None:
    """Moves a log that grew too large to `.1`, and lets its writer (which appends) start over."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.with_suffix(".log.1").write_bytes(path.read_bytes())
            os.truncate(path, 0)


def end_group(pid: int) -> None:
    """SIGKILL for whatever is left of a child's process group, an engine's own process for one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def last_error(path: Path) -> str:
    """The last line of a log that says what was wrong, without its trace."""
    with contextlib.suppress(OSError):
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 20_000))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        named = [
            line for line in lines if '"level": "critical"' in line or '"level": "error"' in line
        ]
        if named or lines:
            return (named or [line for line in lines if line])[-1][:400]
    return f"see {path}"


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
