"""A deployable with its metrics port: the same for API replicas and workers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from inferlog.launch import run_explained, serve_metrics
from runtime.garbage import look_now_and_then
from runtime.health import HealthServer
from runtime.metrics import Metrics, watch_loop_lag
from runtime.service import Service, State

STOP_SECONDS = 20.0
"""Beyond the drain: flushing, committing, leaving groups, ending an engine."""


class Deployable(Service, Protocol):
    """A service that can say whether it may be sent work."""

    def is_ready(self) -> bool:
        """Asked from the thread that serves health."""
        ...


class MeasuredProcess:
    """See `runtime.service.Service`. Metrics are served first: a model that loads can be watched."""

    def __init__(
        self, name: str, make: Callable[[Metrics], Deployable], metrics_host: str, metrics_port: int
    ) -> None:
        self._make = make
        self._metrics = Metrics(process=True)
        self._metrics.build_info.labels(installed_version(), name).set(1)
        self._address = (metrics_host, metrics_port)
        self._state = State.NEW
        self._health: HealthServer | None = None
        self._inner: Deployable | None = None
        self._own: list[asyncio.Task[None]] = []

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Raises CommandFailed if the metrics port is taken, and whatever the inner start raises."""
        self._health = serve_metrics(*self._address, self._metrics, self._probe)
        self._inner = self._make(self._metrics)
        tasks = await self._inner.start()
        self._own = [
            asyncio.create_task(watch_loop_lag(self._metrics.loop_lag.observe), name="loop-lag"),
            asyncio.create_task(look_now_and_then(), name="garbage"),
        ]
        return [*tasks, *self._own]

    async def drain(self) -> None:
        """Drains what it runs."""
        if self._inner is not None:
            await self._inner.drain()

    async def stop(self) -> None:
        """Stops what it runs, then lets go of the port."""
        try:
            if self._inner is not None:
                await self._inner.stop()
        finally:
            for task in self._own:
                task.cancel()
            if self._health is not None:
                await asyncio.to_thread(self._health.stop)

    async def live(self, drain_seconds: float) -> int:
        """From start to exit code. Raises CommandFailed."""
        return await run_explained(self, drain_seconds, STOP_SECONDS, self._entered)

    def _entered(self, state: State) -> None:
        self._state = state

    def _probe(self) -> tuple[bool, Mapping[str, Any]]:
        ready = self._state is State.RUNNING and self._inner is not None and self._inner.is_ready()
        return ready, {"state": self._state.value}


def installed_version() -> str:
    """The version of the installed package."""
    try:
        return version("inferlog")
    except PackageNotFoundError:
        return "unknown"
