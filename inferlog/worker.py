"""`inferlog worker`: one worker process, from its settings to its exit code."""

import asyncio
from collections.abc import Sequence
from typing import Any

from consumers.inference.engine.options import EngineOptionError
from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from inferlog.engine_choice import with_model
from inferlog.launch import run_process
from inferlog.problems import WrongUsage
from inferlog.process import STOP_SECONDS, MeasuredProcess
from inferlog.settings import WorkerCommand
from runtime.metrics import Metrics


class WorkerProcess:
    """The worker as a `inferlog.process.Deployable`."""

    def __init__(self, settings: WorkerSettings, metrics: Metrics) -> None:
        try:
            self._inference = InferenceService(settings, metrics=metrics)
        except EngineOptionError as error:
            raise WrongUsage(str(error)) from None

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when the worker has joined its groups."""
        await self._inference.start()
        return [asyncio.create_task(self._until_failure(), name="inference")]

    async def _until_failure(self) -> None:
        await asyncio.shield(self._inference.failed)

    async def drain(self) -> None:
        """Finishes or hands over what runs; bounded by its own setting."""
        await self._inference.stop(drain=True)

    async def stop(self) -> None:
        """Lets go of everything."""
        await self._inference.stop(drain=False)

    def is_ready(self) -> bool:
        """Every partition is owned and being read."""
        return self._inference.owns_all()


def run(command: WorkerCommand) -> int:
    """Runs until a signal or a failure."""
    settings = with_model(command.worker)

    async def main() -> int:
        process = MeasuredProcess(
            "worker",
            lambda metrics: WorkerProcess(settings, metrics),
            settings.metrics_host,
            settings.metrics_port,
        )
        return await process.live(settings.drain_seconds + STOP_SECONDS)

    secrets = [settings.cluster.sasl_password, settings.cluster.ssl_password]
    return run_process(main, command.log, secrets)
