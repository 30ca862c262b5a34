"""A server to be measured: a process of its own, with whatever it starts."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import httpx
import psutil

from benchmarks.stack import HOST, cpu_seconds_of

START_SECONDS = 300.0
STOP_SECONDS = 30.0
SAID_CHARS = 3000


class Server:
    """Used as a context manager: answers inside, ended outside. `health` is what answers 200 then."""

    END_BY: ClassVar = signal.SIGTERM

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        health: str,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.port = port
        self._health = f"http://{HOST}:{port}{health}"
        self._output = folder / f"server-{port}.txt"
        with self._output.open("wb") as out:
            # a group of its own: the terminal's Ctrl-C is for the benchmark, which then ends it
            self._child = subprocess.Popen(
                command, stdout=out, stderr=out, env=environ, cwd=cwd, process_group=0
            )

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def cpu_seconds_by_process(self) -> tuple[float, float]:
        """User and system time so far: of the process itself, and of all that it started."""
        head = psutil.Process(self._child.pid)
        return cpu_seconds_of(head), sum(map(cpu_seconds_of, head.children(recursive=True)))

    def cpu_seconds(self) -> float:
        """Of all of it."""
        return sum(self.cpu_seconds_by_process())

    def _wait(self) -> None:
        until_s = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > until_s:
                said = self._output.read_text(errors="replace")[-SAID_CHARS:]
                raise SystemExit(f"a server did not become ready:\n{said}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return httpx.get(self._health, trust_env=False, timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def _end(self) -> None:
        if self._child.poll() is None:
            self._child.send_signal(self.END_BY)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
        # whatever of its group is left
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
