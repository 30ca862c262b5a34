"""Everything that `inferlog up` runs: Kafka, topics, workers, API replicas, in the right order."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from consumers.inference.identity import request_group
from consumers.inference.settings import WorkerSettings
from inferlog.broker import SupervisedCluster, make_cluster
from inferlog.child_health import is_starting, until_ready
from inferlog.child_specs import API_DRAIN_SECONDS, STOP_MARGIN_SECONDS, ChildSpecs
from inferlog.data_dir import DataDir, UpState
from inferlog.departures import Departures
from inferlog.engine_choice import with_model
from inferlog.held_ports import HeldPorts
from inferlog.local_ports import url_host
from inferlog.problems import CommandFailed
from inferlog.scheduling import let_the_model_compute
from inferlog.settings import UpCommand
from inferlog.supervisor import Child, Report, Supervisor
from inferlog.topics import create_topics, grow_topics, topic_differences, topic_settings
from schemas.requests import TIERS
from topics.ports import Log
from topics.settings import ClusterSettings

STATE_RETRY_SECONDS = 1.0


class Stack:
    """See `runtime.service.Service`. `on_ready` is called once, when requests can be served.

    With `first_workers` only so many are started; the others wait for `start_others`.
    """

    def __init__(
        self,
        command: UpCommand,
        report: Report,
        on_ready: Callable[["Stack"], None],
        environ: Mapping[str, str] = os.environ,
        first_workers: int | None = None,
    ) -> None:
        self.command = command
        self.data_dir = DataDir(command.data_dir)
        self.metrics: dict[str, int] = {}
        self.bootstrap = command.broker
        self.forced = False
        self._report = report
        self._on_ready = on_ready
        self._specs = ChildSpecs(command, self.data_dir, self.metrics, environ)
        first = command.workers if first_workers is None else first_workers
        self._later = [f"worker-{i}" for i in range(first, command.workers)]
        self._settings: ClusterSettings | None = None
        self._ports = HeldPorts()
        self._cluster: SupervisedCluster | None = None
        self._supervisor: Supervisor | None = None
        self._departures: Departures | None = None
        self._untold = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    # --- addresses

    @property
    def url(self) -> str:
        """What clients call."""
        return self._url(self.command.port)

    def replica_url(self, index: int) -> str:
        """The port of one replica alone."""
        return self._url(self.command.port + 1 + index)

    def _url(self, port: int) -> str:
        return f"http://{url_host(self.command.host)}:{port}"

    # --- the life

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when requests are served. Raises CommandFailed with the reason."""
        it = self.command
        worker = with_model(
            WorkerSettings(engine=it.engine, model=it.model, engine_option=it.engine_option)
        )
        self.data_dir.lock()
        replicas = range(it.api_replicas)
        self._ports.take(it.host, [it.port, *(it.port + 1 + i for i in replicas)], "--port")
        names = [f"api-{i}" for i in replicas] + [f"worker-{i}" for i in range(it.workers)]
        ports = self._ports.take_from(it.metrics_host, it.metrics_port, len(names))
        self.metrics.update(zip(names, ports, strict=True))
        let_the_model_compute(it.engine)
        async with self._ready_in_time():
            await self._start_parts(worker)
        self.write_state()
        self._tasks.append(asyncio.create_task(self._tell_changes(), name="tell-state"))
        self._on_ready(self)
        return self._tasks

    async def _start_parts(self, worker: WorkerSettings) -> None:
        cluster = self._settings = await self._start_cluster()
        await self._make_topics(cluster)
        specs = [
            *(self._specs.api(i, cluster) for i in range(self.command.api_replicas)),
            *(self._specs.worker(i, cluster, worker) for i in range(self.command.workers)),
        ]
        self._supervisor = Supervisor(specs, self._report)
        await self._watch_children(self._supervisor.children, cluster.open("inferlog-up"))
        for name in self._later:
            self._supervisor.children[name].may_start.clear()
        self._tasks += self._supervisor.start()
        names = [spec.name for spec in specs if spec.name not in self._later]
        self._report(f"starting {', '.join(names)}")
        waiting = asyncio.gather(*(self._until_ready(name) for name in names))
        try:
            await asyncio.wait({waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in filter(asyncio.Task.done, self._tasks):
                task.result()
            waiting.result()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def start_others(self) -> None:
        """Starts the workers that were held back; returns when they are ready.

        One that can never run ends the whole process, as one of the first would have. Raises
        CommandFailed when they are not ready in time.
        """
        assert self._supervisor is not None
        later, self._later = self._later, []
        self._report(f"starting {', '.join(later)}")
        for name in later:
            self._supervisor.children[name].may_start.set()
        async with self._ready_in_time():
            await asyncio.gather(*(self._until_ready(name) for name in later))

    @contextlib.asynccontextmanager
    async def _ready_in_time(self) -> AsyncIterator[None]:
        limit_s = self.command.ready_seconds
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise CommandFailed(
                f"not ready after {limit_s:.0f} s; the log files in "
                f"{self.data_dir.path / 'logs'} say more. --ready-seconds allows more time."
            ) from None

    async def _start_cluster(self) -> ClusterSettings:
        it = self.command
        if it.broker != "local":
            return replace(it.cluster, bootstrap=it.broker)
        self._report("starting Kafka")
        local = make_cluster(self.data_dir, it.brokers, None, it.broker_heap_mb, it.java)
        self._cluster = SupervisedCluster(local, self._report, self._pids_changed)
        self.bootstrap = await self._cluster.start()
        self._tasks.append(asyncio.create_task(self._cluster.watch(), name="watch-kafka"))
        return ClusterSettings(bootstrap=self.bootstrap)

    async def _make_topics(self, cluster: ClusterSettings) -> None:
        it = self.command
        settings = topic_settings(it.counts(), it.limits)
        log = cluster.open("inferlog-up")
        try:
            created = await create_topics(log, it.pool, settings)
            if created:
                self._report(f"created {len(created)} topics")
            if grown := await grow_topics(log, it.pool, settings):
                self._report(f"added partitions to {', '.join(grown)}")
            for line in await topic_differences(log, it.pool, settings):
                self._report(f"warning: {line}")
        finally:
            await log.close()

    async def drain(self) -> None:
        """Replicas first, so that nothing new comes; then workers, whose last words need Kafka.

        A worker that is being started again has nothing to say yet, and may not hear for half a
        minute that it should end: it is killed.
        """
        if self._supervisor is None:
            return
        names = list(self._supervisor.children)
        await self._supervisor.stop([name for name in names if name.startswith("api-")])
        workers = [name for name in names if name.startswith("worker-")]
        starting = await asyncio.gather(*(is_starting(self._health_url(name)) for name in workers))
        begun = dict(zip(workers, starting, strict=True))
        children = self._supervisor.children
        await asyncio.gather(
            self._supervisor.stop([name for name in workers if not begun[name]]),
            *(children[name].kill() for name in workers if begun[name]),
        )

    async def stop(self) -> None:
        """Ends everything that was started, by force where it was not ended before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._supervisor is not None:
            await self._supervisor.kill()
        if self._departures is not None:
            await self._departures.close()
        if self._cluster is not None:
            await self._cluster.cluster.stop(0.5 if self.forced else 20.0)
        self._ports.release()
        self.data_dir.release()

    def drain_seconds(self) -> float:
        """The longest graceful end: both kinds of children, one after the other."""
        return API_DRAIN_SECONDS + self.command.drain_seconds + 2 * STOP_MARGIN_SECONDS

    def pids(self) -> dict[str, int]:
        """Name -> process id of everything that runs."""
        pids = dict(self._supervisor.pids()) if self._supervisor else {}
        if self._cluster is not None:
            pids |= {f"kafka-{node + 1}": pid for node, pid in self._cluster.cluster.pids().items()}
        return pids

    # --- children

    def keys_source(self) -> dict[str, Any]:
        """Where keys come from, as settings of the API."""
        return self._specs.keys_source()

    def worker_named(self, worker_id: str) -> Child | None:
        """The child that calls itself so on the log."""
        for index in range(self.command.workers):
            if self._supervisor is not None and self._specs.worker_id(index) == worker_id:
                return self._supervisor.children[f"worker-{index}"]
        return None

    def open_log(self, client_id: str) -> Log:
        """The cluster's log, for a reader beside the children. Call when everything is up."""
        assert self._settings is not None
        return self._settings.open(client_id)

    async def _watch_children(self, children: Mapping[str, Child], log: Log) -> None:
        """Other commands are told new process ids; a dead worker's groups are left for it."""
        it = self.command
        groups = [request_group(it.pool, tier) for tier in TIERS]
        self._departures = Departures(log, groups, it.session_timeout_seconds, self._report)
        await self._departures.connect()
        for child in children.values():
            child.on_launch = self._pids_changed
            child.on_death = lambda _: self._pids_changed()
        for index in range(it.workers):
            leave = self._departures.of_worker(self._specs.worker_id(index))
            children[f"worker-{index}"].on_death = partial(self._worker_died, leave)

    def _worker_died(self, leave: Callable[[int], None], pid: int) -> None:
        leave(pid)
        self._pids_changed()

    def _pids_changed(self) -> None:
        self._untold.set()

    async def _tell_changes(self) -> None:
        """Writes the state anew whenever it changed, for ever.

        A full disk, which ends a broker, must not end those who start it again.
        """
        reported = False
        while True:
            await self._untold.wait()
            self._untold.clear()
            try:
                self.write_state()
                reported = False
            except OSError as error:
                if not reported:
                    self._report(f"warning: other commands see old process ids: {error.strerror}")
                reported = True
                self._untold.set()
                await asyncio.sleep(STATE_RETRY_SECONDS)

    async def _until_ready(self, name: str) -> None:
        assert self._supervisor is not None
        await until_ready(self._health_url(name))
        self._supervisor.children[name].was_ready = True
        self._report(f"{name} is ready")

    def _health_url(self, name: str) -> str:
        return f"http://{url_host(self.command.metrics_host)}:{self.metrics[name]}/health"

    def write_state(self) -> None:
        """Tells other commands where everything is."""
        keys = self.keys_source()["api_keys_file"]
        self.data_dir.write_state(
            UpState(
                pid=os.getpid(),
                url=self.url,
                replica_urls=tuple(self.replica_url(i) for i in range(self.command.api_replicas)),
                bootstrap=self.bootstrap,
                api_keys_file=str(keys) if keys is not None else None,
                metrics=self.metrics,
                pids=self.pids(),
            )
        )
