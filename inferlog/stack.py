"""Everything that `inferlog up` runs: Kafka, topics, workers, API replicas, in the right order."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from consumers.inference.identity import request_group
from consumers.inference.settings import WorkerSettings
from inferlog.broker import SupervisedCluster, make_cluster
from inferlog.data_dir import DataDir, UpState
from inferlog.departures import Departures
from inferlog.engine_choice import with_model
from inferlog.held_ports import CAN_HOLD, HeldPorts
from inferlog.local_ports import url_host
from inferlog.problems import CommandFailed
from inferlog.settings import UpCommand
from inferlog.supervisor import METRICS_PORT_HELD, Child, ChildSpec, Report, Supervisor
from inferlog.topics import create_topics, grow_topics, topic_differences, topic_settings
from producer_api.settings import ApiSettings
from runtime.settings import PREFIX, to_environ
from schemas.requests import TIERS
from topics.ports import Log
from topics.settings import ClusterSettings

STOP_MARGIN_SECONDS = 25.0
API_DRAIN_SECONDS = 10.0
READY_POLL_SECONDS = 0.1


class Stack:
    """See `runtime.service.Service`. `on_ready` is called once, when requests can be served."""

    def __init__(
        self,
        command: UpCommand,
        report: Report,
        on_ready: Callable[["Stack"], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.command = command
        self.data_dir = DataDir(command.data_dir)
        self.metrics: dict[str, int] = {}
        self.bootstrap = command.broker
        self.forced = False
        self._report = report
        self._on_ready = on_ready
        self._environ = environ
        self._ports = HeldPorts()
        self._cluster: SupervisedCluster | None = None
        self._supervisor: Supervisor | None = None
        self._departures: Departures | None = None
        self._ready = False
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
        self.metrics = dict(zip(names, ports, strict=True))
        try:
            async with asyncio.timeout(it.ready_seconds):
                await self._start_parts(worker)
        except TimeoutError:
            raise CommandFailed(
                f"not ready after {it.ready_seconds:.0f} s; the log files in "
                f"{self.data_dir.path / 'logs'} say more. --ready-seconds allows more time."
            ) from None
        self._ready = True
        self.write_state()
        self._on_ready(self)
        return self._tasks

    async def _start_parts(self, worker: WorkerSettings) -> None:
        cluster = await self._start_cluster()
        await self._make_topics(cluster)
        specs = [
            *(self._api_spec(i, cluster) for i in range(self.command.api_replicas)),
            *(self._worker_spec(i, cluster, worker) for i in range(self.command.workers)),
        ]
        self._supervisor = Supervisor(specs, self._report)
        await self._watch_children(self._supervisor.children, cluster.open("inferlog-up"))
        self._tasks += self._supervisor.start()
        self._report(f"starting {', '.join(spec.name for spec in specs)}")
        waiting = asyncio.gather(*(self._until_ready(spec.name) for spec in specs))
        try:
            await asyncio.wait({waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
            waiting.result()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _start_cluster(self) -> ClusterSettings:
        it = self.command
        if it.broker != "local":
            return replace(it.cluster, bootstrap=it.broker)
        self._report("starting Kafka")
        local = make_cluster(self.data_dir, it.brokers, None, it.broker_heap_mb, it.java)
        self._cluster = SupervisedCluster(local, self._report)
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
        """Replicas first, so that nothing new comes; then workers, whose last words need Kafka."""
        if self._supervisor is None:
            return
        names = list(self._supervisor.children)
        await self._supervisor.stop([name for name in names if name.startswith("api-")])
        await self._supervisor.stop([name for name in names if name.startswith("worker-")])

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
        it = self.command
        if it.api_key is None and it.api_keys_file is None:
            return {"api_keys_file": self.data_dir.keys_file()}
        return {"api_key": it.api_key, "api_keys_file": it.api_keys_file}

    def _api_spec(self, index: int, cluster: ClusterSettings) -> ChildSpec:
        it = self.command
        name = f"api-{index}"
        settings = ApiSettings(
            cluster=cluster,
            host=it.host,
            port=it.port,
            extra_port=it.port + 1 + index,
            replica_index=index,
            replica_count=it.api_replicas,
            pool=it.pool,
            cors_origins=it.cors_origins,
            drain_seconds=API_DRAIN_SECONDS,
            metrics_host=it.metrics_host,
            metrics_port=self.metrics[name],
            limits=it.limits,
            **self.keys_source(),
        )
        return self._spec(name, ("api",), settings, API_DRAIN_SECONDS)

    def _worker_spec(
        self, index: int, cluster: ClusterSettings, worker: WorkerSettings
    ) -> ChildSpec:
        it = self.command
        name = f"worker-{index}"
        settings = replace(
            worker,
            cluster=cluster,
            pool=it.pool,
            worker_id=self._worker_id(index),
            session_timeout_seconds=it.session_timeout_seconds,
            drain_seconds=it.drain_seconds,
            metrics_host=it.metrics_host,
            metrics_port=self.metrics[name],
            data_dir=self.data_dir.path / name,
            limits=it.limits,
        )
        # Options hold any character, also the one that separates them in a variable.
        options = [word for each in settings.engine_option for word in ("--engine-option", each)]
        settings = replace(settings, engine_option=())
        return self._spec(name, ("worker", *options), settings, it.drain_seconds)

    def _worker_id(self, index: int) -> str:
        """Told apart from those of another `up` on the same cluster."""
        return f"{socket.gethostname()}-{self.command.port}-{index}"

    async def _watch_children(self, children: Mapping[str, Child], log: Log) -> None:
        """Other commands are told new process ids; a dead worker's groups are left for it."""
        it = self.command
        groups = [request_group(it.pool, tier) for tier in TIERS]
        self._departures = Departures(log, groups, it.session_timeout_seconds, self._report)
        await self._departures.connect()
        for index in range(it.workers):
            on_death = self._departures.of_worker(self._worker_id(index))
            children[f"worker-{index}"].on_death = on_death
        for child in children.values():
            child.on_launch = lambda: self.write_state() if self._ready else None

    def _spec(
        self, name: str, arguments: tuple[str, ...], settings: Any, drain_seconds: float
    ) -> ChildSpec:
        # What was set for us was read already; a child must not read it again in its own way.
        kept = {
            key: value
            for key, value in self._environ.items()
            if not key.startswith(PREFIX) or key == f"{PREFIX}CACHE_DIR"
        }
        if CAN_HOLD:
            kept[METRICS_PORT_HELD] = "1"
        return ChildSpec(
            name=name,
            arguments=arguments,
            environ={**kept, **to_environ(settings), **to_environ(self.command.log)},
            log_file=self.data_dir.log_file(name),
            stop_seconds=drain_seconds + STOP_MARGIN_SECONDS,
        )

    async def _until_ready(self, name: str) -> None:
        assert self._supervisor is not None
        url = f"http://{url_host(self.command.metrics_host)}:{self.metrics[name]}/health"
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while True:
                try:
                    if (await client.get(url)).status_code == 200:
                        break
                except (httpx.HTTPError, AttributeError):
                    pass  # AttributeError: anyio, of a connection reset as soon as it was made
                await asyncio.sleep(READY_POLL_SECONDS)
        self._supervisor.children[name].was_ready = True
        self._report(f"{name} is ready")

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
