"""`inferlog broker`: a local Kafka in the foreground."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from inferlog.backoff import Backoff
from inferlog.data_dir import DataDir
from inferlog.launch import run_process
from inferlog.problems import CommandFailed
from inferlog.settings import BrokerCommand
from inferlog.supervisor import Report
from runtime.logs import LogSettings
from runtime.service import Lifecycle, signals_to
from topics.broker import BrokerFailed, LocalCluster

STOP_SECONDS = 30.0
KAFKA = "kafka"


class SupervisedCluster:
    """A local cluster whose nodes are started again when they end by themselves.

    `on_change` is called after each end and each new start: the process ids are others then.
    """

    def __init__(
        self, cluster: LocalCluster, report: Report, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.cluster = cluster
        self._report = report
        self._on_change = on_change
        self._backoff = Backoff()

    async def start(self) -> str:
        """Returns the bootstrap servers. Raises CommandFailed."""
        try:
            return await self.cluster.start()
        except BrokerFailed as error:
            raise CommandFailed(str(error)) from None

    async def watch(self) -> None:
        """Starts again, for ever, whatever ended."""
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            node = await self.cluster.wait_exit()
            self._on_change()
            what = f"Kafka (node {node + 1}) ended"
            while True:
                pause_s = self._backoff.next_pause(loop.time() - began_s)
                self._report(
                    f"{what}; starting it again in {pause_s:.1f} s "
                    f"(log: {self.cluster.log_file(node)})"
                )
                await asyncio.sleep(pause_s)
                began_s = loop.time()
                try:
                    await self.cluster.start()
                    self._on_change()
                    self._report(f"Kafka (node {node + 1}) is back")
                    break
                except BrokerFailed as error:
                    what = f"Kafka did not start: {error}"


def make_cluster(
    data_dir: DataDir, brokers: int, first_port: int | None, heap_mb: int, java: Any
) -> LocalCluster:
    """The local cluster of a data folder."""
    ports = None if first_port is None else [first_port + i for i in range(brokers)]
    return LocalCluster(
        data_dir.path / KAFKA, brokers=brokers, ports=ports, heap_mb=heap_mb, java=java
    )


class BrokerProcess:
    """See `runtime.service.Service`."""

    def __init__(self, command: BrokerCommand) -> None:
        self._command = command
        self._data_dir = DataDir(command.data_dir)
        self._cluster: SupervisedCluster | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when every node answers."""
        self._data_dir.lock()
        it = self._command
        cluster = make_cluster(
            self._data_dir, it.brokers, it.broker_port, it.broker_heap_mb, it.java
        )
        self._cluster = SupervisedCluster(cluster, lambda line: print(line, file=sys.stderr))
        print(f"bootstrap servers: {await self._cluster.start()}")
        print(f"data: {self._data_dir.path}   Ctrl-C stops it", flush=True)
        self._watch = asyncio.create_task(self._cluster.watch(), name="watch-kafka")
        return [self._watch]

    async def drain(self) -> None:
        """Nothing is in flight here."""

    async def stop(self) -> None:
        """Ends the nodes."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._cluster is not None:
            await self._cluster.cluster.stop()
        self._data_dir.release()


async def _main(command: BrokerCommand) -> int:
    life = Lifecycle(BrokerProcess(command), drain_seconds=1.0, stop_seconds=STOP_SECONDS)
    with signals_to(life.signalled):
        await life.run()
    return 0


def run(command: BrokerCommand) -> int:
    """Runs until a signal."""
    return run_process(lambda: _main(command), LogSettings(level="WARNING"))
