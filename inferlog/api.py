"""`inferlog api`: one API replica, from its settings to its exit code."""

import asyncio
from collections.abc import Sequence
from typing import Any

from inferlog.data_dir import key_values
from inferlog.launch import run_process
from inferlog.problems import WrongUsage
from inferlog.process import MeasuredProcess
from inferlog.settings import ApiCommand
from producer_api.app import ApiService
from producer_api.auth import KeysUnusable
from producer_api.settings import ApiSettings
from runtime.metrics import Metrics

DRAIN_MARGIN_SECONDS = 5.0


class ApiProcess:
    """The replica as a `inferlog.process.Deployable`."""

    def __init__(self, settings: ApiSettings, metrics: Metrics) -> None:
        try:
            self._api = ApiService(settings, metrics=metrics)
        except KeysUnusable as error:
            raise WrongUsage(str(error)) from None

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when requests are served."""
        return await self._api.start()

    async def drain(self) -> None:
        """Refuses what is new; open answers end with an id to resume from."""
        await self._api.drain()

    async def stop(self) -> None:
        """Lets go of everything."""
        await self._api.stop()

    def is_ready(self) -> bool:
        """It can publish, and its home partitions are being read."""
        return self._api.pipeline.not_ready() is None


def run(command: ApiCommand) -> int:
    """Runs until a signal or a failure."""
    settings = command.api

    async def main() -> int:
        process = MeasuredProcess(
            "api",
            lambda metrics: ApiProcess(settings, metrics),
            settings.metrics_host,
            settings.metrics_port,
        )
        return await process.live(settings.drain_seconds + DRAIN_MARGIN_SECONDS)

    secrets = [settings.api_key, settings.cluster.sasl_password, settings.cluster.ssl_password]
    if settings.api_keys_file is not None:
        secrets += key_values(settings.api_keys_file)
    return run_process(main, command.log, secrets)
