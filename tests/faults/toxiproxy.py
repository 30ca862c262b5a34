"""Toxiproxy in front of a broker: a network that is slow, cut, or swallows what is said.

Toxiproxy (https://github.com/Shopify/toxiproxy, MIT) is built from the Go module proxy, once, into
the cache beside Kafka's files.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx

from inferlog.local_ports import any_free
from topics.kafka_download import cache_dir

MODULE = "github.com/Shopify/toxiproxy/v2/cmd/server"
VERSION = "v2.12.0"
BUILD_SECONDS = 300

Direction = Literal["upstream", "downstream"]


def server_file() -> Path | None:
    """The built program; None where it neither is nor can be built."""
    folder = cache_dir() / f"toxiproxy-{VERSION}"
    program = folder / "server"
    go = shutil.which("go")
    if not program.exists() and go is not None:
        subprocess.run(
            [go, "install", f"{MODULE}@{VERSION}"],
            env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-mod=mod"},
            timeout=BUILD_SECONDS,
            capture_output=True,
            check=False,
        )
    return program if program.exists() else None


class Toxiproxy:
    """One proxy from `port` to the broker's own port."""

    def __init__(self, program: Path, upstream_port: int) -> None:
        admin = any_free("127.0.0.1", 2)
        self.port = admin + 1
        self._process = subprocess.Popen(
            [str(program), "-host", "127.0.0.1", "-port", str(admin)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{admin}", trust_env=False)
        proxy = {
            "name": "kafka",
            "listen": f"127.0.0.1:{self.port}",
            "upstream": f"127.0.0.1:{upstream_port}",
        }
        deadline_s = time.monotonic() + 10.0
        while True:
            try:
                self._http.post("/proxies", json=proxy).raise_for_status()
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline_s, "toxiproxy does not answer"
                time.sleep(0.05)

    @contextmanager
    def toxic(self, kind: str, direction: Direction, **attributes: Any) -> Iterator[None]:
        """The network has this fault as long as the context lasts; proves that it was set."""
        toxic = {"name": "t", "type": kind, "stream": direction, "attributes": attributes}
        self._http.post("/proxies/kafka/toxics", json=toxic).raise_for_status()
        try:
            yield
        finally:
            self._http.delete("/proxies/kafka/toxics/t").raise_for_status()

    def cut(self) -> None:
        """Every connection ends, and no new one is taken until `mend`."""
        self._http.post("/proxies/kafka", json={"enabled": False}).raise_for_status()

    def mend(self) -> None:
        """Connections are taken again."""
        self._http.post("/proxies/kafka", json={"enabled": True}).raise_for_status()

    def close(self) -> None:
        """Ends the program."""
        self._http.close()
        self._process.terminate()
        self._process.wait(10)
