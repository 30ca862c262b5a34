"""Runs one process: logs, event loop, lifecycle, metrics port, and the bond to its supervisor."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from core.errors import InferlogError
from inferlog.problems import CommandFailed
from inferlog.supervisor import METRICS_PORT_HELD, PARENT_PID
from runtime.health import HealthServer, PortTaken, Probe
from runtime.logs import LogSettings, configure
from runtime.metrics import Metrics
from runtime.service import Service, State, run_service

_PR_SET_PDEATHSIG = 1


def die_with_parent(environ: "os._Environ[str]" = os.environ) -> None:
    """Under a supervisor: SIGTERM when it dies, whatever killed it (Linux).

    Elsewhere a child whose supervisor was killed by SIGKILL is left behind.
    """
    parent = environ.pop(PARENT_PID, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the supervisor is gone")


def run_process(
    main: Callable[[], Coroutine[Any, Any, int]],
    log: LogSettings,
    secrets: Iterable[str | None] = (),
    silent: Iterable[str] = (),
) -> int:
    """Runs `main` on a quick event loop with logging set up; returns its exit code.

    `silent`: loggers whose lines would only repeat what `main` tells its user itself.
    """
    die_with_parent()
    configure(log, secrets=[secret for secret in secrets if secret])
    for name in silent:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        import uvloop  # noqa: PLC0415  (not on every platform)

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


async def run_explained(
    service: Service,
    drain_seconds: float,
    stop_seconds: float,
    on_state: Callable[[State], None] | None = None,
) -> int:
    """`run_service`, where our own errors are shown as a sentence. Raises CommandFailed."""
    try:
        return await run_service(
            service,
            drain_seconds,
            stop_seconds=stop_seconds,
            on_state=on_state,
            explained=(InferlogError,),
        )
    except CommandFailed:
        raise
    except InferlogError as error:
        raise CommandFailed(f"{error}") from error


def serve_metrics(host: str, port: int, metrics: Metrics, probe: Probe) -> HealthServer | None:
    """Serves a process's metrics and health; None when the port is 0. Raises CommandFailed."""
    if port == 0:
        return None
    held = METRICS_PORT_HELD in os.environ
    server = HealthServer(host, port, metrics.registry, probe, shared=held)
    try:
        server.start()
    except PortTaken as error:
        raise CommandFailed(str(error)) from None
    return server
