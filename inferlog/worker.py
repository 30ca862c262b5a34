"""`inferlog worker`: one worker process, from its settings to its exit code."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consumers.inference.settings import WorkerSettings
from inferlog.engine_choice import with_model
from inferlog.launch import run_explained, run_process, serve_metrics
from inferlog.problems import WrongUsage
from inferlog.settings import WorkerCommand
from runtime.health import HealthServer
from runtime.metrics import Metrics, watch_loop_lag
from runtime.service import State

if TYPE_CHECKING:
    from consumers.inference.service import InferenceService

STOP_SECONDS = 20.0
"""Beyond the drain: flushing replies, committing, leaving the groups, ending the engine."""


class WorkerProcess:
    """See `runtime.service.Service`."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.state = State.NEW
        self._settings = settings
        self._metrics = Metrics(process=True)
        self._health: HealthServer | None = None
        self._inference: InferenceService | None = None
        self._side_tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Metrics first, so that a model that loads for a minute can be watched."""
        from consumers.inference.engine.options import EngineOptionError  # noqa: PLC0415
        from consumers.inference.service import InferenceService  # noqa: PLC0415  (slow imports)

        it = self._settings
        self._health = serve_metrics(it.metrics_host, it.metrics_port, self._metrics, self._probe)
        try:
            self._inference = InferenceService(it, metrics=self._metrics)
        except EngineOptionError as error:
            raise WrongUsage(str(error)) from None
        await self._inference.start()
        self._side_tasks = [
            asyncio.create_task(self._until_failure(self._inference), name="inference"),
            asyncio.create_task(watch_loop_lag(self._metrics.loop_lag.observe), name="loop-lag"),
        ]
        return self._side_tasks

    async def drain(self) -> None:
        """Finishes or hands over what runs; bounded by its own setting."""
        if self._inference is not None:
            await self._inference.stop(drain=True)

    async def stop(self) -> None:
        """Lets go of everything."""
        for task in self._side_tasks:
            task.cancel()
        await asyncio.gather(*self._side_tasks, return_exceptions=True)
        try:
            if self._inference is not None:
                await self._inference.stop(drain=False)
        finally:
            if self._health is not None:
                await asyncio.to_thread(self._health.stop)

    def entered(self, state: State) -> None:
        """Notes the state for the health probe."""
        self.state = state

    def _probe(self) -> tuple[bool, Mapping[str, Any]]:
        ready = (
            self.state is State.RUNNING
            and self._inference is not None
            and self._inference.owns_all()
        )
        return ready, {"state": self.state.value}

    @staticmethod
    async def _until_failure(inference: "InferenceService") -> None:
        await asyncio.shield(inference.failed)


async def _main(settings: WorkerSettings) -> int:
    process = WorkerProcess(settings)
    drain_seconds = settings.drain_seconds + STOP_SECONDS
    return await run_explained(process, drain_seconds, STOP_SECONDS, process.entered)


def run(command: WorkerCommand) -> int:
    """Runs until a signal or a failure."""
    settings = with_model(command.worker)
    secrets = [settings.cluster.sasl_password, settings.cluster.ssl_password]
    return run_process(lambda: _main(settings), command.log, secrets)
