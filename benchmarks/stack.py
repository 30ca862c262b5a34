"""A running `inferlog up` to be measured: its processes, their CPU and memory, its ports."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from inferlog.local_ports import any_free

START_SECONDS = {"scripted": 120.0, "vllm": 300.0}
STOP_SECONDS = 60.0
HOST = "127.0.0.1"
PARTS = ("api", "worker", "kafka")


def engine_words(*options: str) -> list[str]:
    """Options of the engine, `NAME=VALUE`, as `inferlog up` takes them."""
    return [word for option in options for word in ("--engine-option", option)]


class RunningStack:
    """Used as a context manager: ready inside, ended outside."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        engine: str = "scripted",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port, metrics = any_free(HOST, 4), any_free(HOST, 4)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERLOG_")}
        if cache := os.environ.get("INFERLOG_CACHE_DIR"):
            kept["INFERLOG_CACHE_DIR"] = cache
        self._output = folder / "up.txt"
        self._start_seconds = START_SECONDS[engine]
        command = [sys.executable, "-m", "inferlog", "up", "--engine", engine]
        command += ["--data-dir", str(folder), "--port", str(self.port)]
        command += ["--metrics-port", str(metrics), *options]
        with self._output.open("wb") as out:
            self._up = subprocess.Popen(
                command, stdout=out, stderr=out, env={**kept, **(environ or {})}
            )
        self.key = ""
        self.bootstrap = ""
        self._metrics: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def _wait(self) -> None:
        until_s = time.monotonic() + self._start_seconds
        while "Inferlog is up." not in self._said():
            if self._up.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"inferlog up did not become ready:\n{self._said()}")
            time.sleep(0.1)
        state = json.loads((self.folder / "up.json").read_text())
        self.bootstrap = state["bootstrap"]
        said = self._said()
        line = next(it for it in said.splitlines() if it.startswith("Metrics:"))
        self._metrics = {name: int(port) for name, port in re.findall(r"(\S+-\d+) (\d+)", line)}
        keys = (self.folder / "api-keys").read_text().splitlines()
        self.key = next(it for it in keys if it and it[0] != "#").partition(":")[2]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def _said(self) -> str:
        return self._output.read_text(errors="replace")

    def _end(self) -> None:
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
            try:
                self._up.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._up.kill()
                self._up.wait()

    # --- what is measured

    @property
    def pids(self) -> dict[str, int]:
        """Each part's process as it is now, restarted or not: `api-0`, `worker-0`, `kafka-1` …"""
        state: dict[str, dict[str, int]] = json.loads((self.folder / "up.json").read_text())
        return state["pids"]

    def processes(self, part: str) -> list[psutil.Process]:
        """Those of `api`, `worker` or `kafka`, with their children."""
        heads = [psutil.Process(pid) for name, pid in self.pids.items() if name.startswith(part)]
        if not heads:
            raise SystemExit(f"inferlog up runs no {part}")
        return [it for head in heads for it in (head, *head.children(recursive=True))]

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time so far, of each part, children that have ended counted."""
        return {part: sum(map(cpu_seconds_of, self.processes(part))) for part in PARTS}

    def memory_bytes(self, part: str) -> int:
        """Resident memory of a part."""
        return sum(int(it.memory_info().rss) for it in self.processes(part))

    def metric(self, part: str, name: str, labels: str = "") -> float:
        """The sum of a metric's samples over the processes of a part; `labels` must all occur."""
        total = 0.0
        wanted: Sequence[str] = labels.split(",") if labels else ()
        for process, port in self._metrics.items():
            if process.startswith(part):
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    lines = answer.read().decode().splitlines()
                for line in lines:
                    head, _, value = line.rpartition(" ")
                    if head.partition("{")[0] == name and all(it in head for it in wanted):
                        total += float(value)
        return total

    def wait_for_ended(self, requests: float, seconds: float = 60.0) -> None:
        """Returns when the workers have ended so many requests since their start."""
        until_s = time.monotonic() + seconds
        while (ended := self.metric("worker", "inferlog_requests_ended_total")) < requests:
            if time.monotonic() > until_s:
                raise SystemExit(f"{ended:.0f} of {requests:.0f} requests ended in {seconds} s")
            time.sleep(0.2)


def cpu_seconds_of(process: psutil.Process) -> float:
    """User and system time so far, children that have ended counted."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
