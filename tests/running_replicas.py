"""`inferlog up` as a process of its own, with its replicas' addresses: for tests that kill them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from inferlog.local_ports import any_free

REPLICAS = 2


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits; fails with `what` after the limit."""
    deadline_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


class RunningReplicas:
    """Two replicas, one worker, the scripted engine at 20 tokens a second for each stream."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = any_free("127.0.0.1", REPLICAS + 1)
        self.output = folder / "up.txt"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("INFERLOG_")}
        if cache := os.environ.get("INFERLOG_CACHE_DIR"):
            environ["INFERLOG_CACHE_DIR"] = cache
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "inferlog", "up", "--engine", "scripted"),
                    *("--engine-option", "tokens_per_second=20"),
                    *("--data-dir", str(folder), "--port", str(self.port)),
                    *("--api-replicas", str(REPLICAS), "--drain-seconds", "2"),
                    *("--metrics-port", str(any_free("127.0.0.1", REPLICAS + 1))),
                    *options,
                ],
                stdout=out,
                stderr=out,
                env=environ,
            )

    def wait(self) -> "RunningReplicas":
        """Returns when requests are served."""
        ended = self.process.poll
        until(lambda: "Inferlog is up." in self.said() or ended() is not None, 90, "not up")
        assert ended() is None, self.said()
        return self

    def said(self) -> str:
        return self.output.read_text()

    @property
    def key(self) -> str:
        return (self.folder / "api-keys").read_text().partition(":")[2].strip()

    @property
    def replicas(self) -> list[str]:
        """The address of each replica alone."""
        return [f"http://127.0.0.1:{self.port + 1 + index}" for index in range(REPLICAS)]

    def kill_replica(self, index: int) -> None:
        """SIGKILL to whoever listens on its own port; it is started again after a while."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            ports = {it.laddr.port for it in child.net_connections() if it.status == "LISTEN"}
            if self.port + 1 + index in ports:
                child.kill()
                return
        raise AssertionError(f"replica {index} is not there")

    def stop(self) -> None:
        """Ends it and all that it started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
