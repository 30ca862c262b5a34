"""How `inferlog up` starts its children: the settings of each, as variables of its environment."""

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from consumers.inference.settings import WorkerSettings
from inferlog.data_dir import DataDir
from inferlog.held_ports import CAN_HOLD
from inferlog.settings import UpCommand
from inferlog.supervisor import METRICS_PORT_HELD, ChildSpec
from producer_api.settings import ApiSettings
from runtime.settings import PREFIX, to_environ
from topics.settings import ClusterSettings

STOP_MARGIN_SECONDS = 25.0
API_DRAIN_SECONDS = 10.0


class ChildSpecs:
    """`metrics` names each child and the port that is held for it."""

    def __init__(
        self,
        command: UpCommand,
        data_dir: DataDir,
        metrics: Mapping[str, int],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._command = command
        self._data_dir = data_dir
        self._metrics = metrics
        self._environ = environ

    def keys_source(self) -> dict[str, Any]:
        """Where keys come from, as settings of the API."""
        it = self._command
        if it.api_key is None and it.api_keys_file is None:
            return {"api_keys_file": self._data_dir.keys_file()}
        return {"api_key": it.api_key, "api_keys_file": it.api_keys_file}

    def api(self, index: int, cluster: ClusterSettings) -> ChildSpec:
        """A replica of the API."""
        it = self._command
        name = f"api-{index}"
        settings = ApiSettings(
            cluster=cluster,
            host=it.host,
            port=it.port,
            extra_port=it.port + 1 + index,
            replica_index=index,
            replica_count=it.api_replicas,
            cors_origins=it.cors_origins,
            drain_seconds=API_DRAIN_SECONDS,
            metrics_host=it.metrics_host,
            metrics_port=self._metrics[name],
            limits=it.limits,
            **self.keys_source(),
        )
        return self._spec(name, ("api",), settings, API_DRAIN_SECONDS)

    def worker(self, index: int, cluster: ClusterSettings, worker: WorkerSettings) -> ChildSpec:
        """A worker; `worker` says which engine and model."""
        it = self._command
        name = f"worker-{index}"
        settings = replace(
            worker,
            cluster=cluster,
            pool=it.pool,
            worker_id=self.worker_id(index),
            session_timeout_seconds=it.session_timeout_seconds,
            drain_seconds=it.drain_seconds,
            metrics_host=it.metrics_host,
            metrics_port=self._metrics[name],
            limits=it.limits,
        )
        # Options hold any character, also the one that separates them in a variable.
        options = [word for each in settings.engine_option for word in ("--engine-option", each)]
        settings = replace(settings, engine_option=())
        return self._spec(name, ("worker", *options), settings, it.drain_seconds)

    def worker_id(self, index: int) -> str:
        """Told apart from those of another `up` on the same cluster."""
        return f"{socket.gethostname()}-{self._command.port}-{index}"

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
            environ={**kept, **to_environ(settings), **to_environ(self._command.log)},
            log_file=self._data_dir.log_file(name),
            stop_seconds=drain_seconds + STOP_MARGIN_SECONDS,
        )
