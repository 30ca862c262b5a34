"""`inferlog up` as a process of its own, and hands to hurt its parts with."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import psutil

from inferlog.data_dir import first_key
from inferlog.local_ports import any_free
from tests.running_up import clean_environ

UP_SECONDS = 90.0
END_SECONDS = 60.0


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for something; `what` says what did not come."""
    deadline_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


class RunningStack:
    """Starts when made; `end` stops it politely and proves that nothing stays."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        api_replicas: int = 2,
        brokers: int = 1,
        bootstrap: str | None = None,
        session_timeout_seconds: float = 3.0,
        engine: str = "scripted",
        model: str = "scripted",
        engine_options: tuple[str, ...] = ("tokens_per_second=40",),
        ready_seconds: float = UP_SECONDS,
        more: tuple[str, ...] = (),
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.port = port or any_free("127.0.0.1", 1 + api_replicas)
        self.replicas = [
            f"http://127.0.0.1:{self.port + 1 + index}" for index in range(api_replicas)
        ]
        self.names = {f"api-{index}" for index in range(api_replicas)}
        self.names |= {f"worker-{index}" for index in range(workers)}
        if bootstrap is None:
            self.names |= {f"kafka-{index + 1}" for index in range(brokers)}
        self._output = folder / "up.txt"
        options = [word for each in engine_options for word in ("--engine-option", each)]
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "inferlog", "up", "--engine", engine, *options),
                    *("--data-dir", str(folder), "--port", str(self.port)),
                    *("--workers", str(workers), "--api-replicas", str(api_replicas)),
                    *("--brokers", str(brokers), "--drain-seconds", "2"),
                    *("--session-timeout-seconds", str(session_timeout_seconds)),
                    *("--metrics-port", str(any_free("127.0.0.1", workers + api_replicas))),
                    *(("--broker", bootstrap) if bootstrap else ()),
                    *more,
                ],
                stdout=out,
                stderr=out,
                env=clean_environ() | dict(environ or {}),
            )
        until(
            lambda: "Inferlog is up." in self.said() or self.process.poll() is not None,
            ready_seconds,
            "`inferlog up` was not ready in time",
        )
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """What `up` printed so far."""
        return self._output.read_text()

    @property
    def key(self) -> str:
        """The API key."""
        key = first_key(self.folder / "api-keys")
        assert key is not None
        return key

    @property
    def keys(self) -> dict[str, str]:
        """Every tenant's."""
        lines = (self.folder / "api-keys").read_text().splitlines()
        pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
        return {tenant: key for tenant, _, key in pairs}

    @property
    def bootstrap(self) -> str:
        """Kafka's address."""
        return str(json.loads((self.folder / "up.json").read_text())["bootstrap"])

    def processes(self) -> dict[str, psutil.Process]:
        """What runs now, restarted or not: `api-0`, `worker-1`, `kafka-1` … -> process."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name = _name_of(child.cmdline(), child.environ())
            except psutil.Error:
                continue  # gone meanwhile
            if name is not None:
                found.setdefault(name, child)
        return found

    async def healthy(self, seconds: float = 60.0) -> None:
        """Returns when every part runs and every replica answers a request."""
        headers = {"Authorization": f"Bearer {self.key}"}
        body = {"model": self.model, "prompt": "are you well", "max_tokens": 1}
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(headers=headers, timeout=5.0, trust_env=False) as client,
        ):
            for replica in self.replicas:
                while not await _answers(client, f"{replica}/v1/completions", body):
                    await asyncio.sleep(0.1)
            while set(self.processes()) != self.names:
                await asyncio.sleep(0.1)

    def signal(self, name: str, number: signal.Signals) -> int:
        """Sends a signal to a part; returns its process id."""
        pid = self.processes()[name].pid
        os.kill(pid, number)
        return pid

    def end(self) -> None:
        """SIGTERM; everything it had started must be gone, and it must say so with 0."""
        if self.process.poll() is not None:
            return
        started = psutil.Process(self.process.pid).children(recursive=True)
        for child in started:
            if child.is_running() and child.status() == psutil.STATUS_STOPPED:
                child.resume()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        _, alive = psutil.wait_procs(started, timeout=10)
        assert (code, alive) == (0, []), self.said()


async def _answers(client: httpx.AsyncClient, url: str, body: dict[str, object]) -> bool:
    try:
        return (await client.post(url, json=body)).status_code == 200
    except httpx.HTTPError:
        return False


def _name_of(command: list[str], environ: dict[str, str]) -> str | None:
    if "kafka.Kafka" in command:
        node = Path(command[-1]).parent.name.removeprefix("node-")
        return f"kafka-{node}"
    if "api" in command[2:5]:
        return f"api-{environ.get('INFERLOG_REPLICA_INDEX', '0')}"
    if "worker" in command[2:5]:
        return f"worker-{environ['INFERLOG_WORKER_ID'].rpartition('-')[2]}"
    return None
