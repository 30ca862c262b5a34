"""The API process: FastAPI behind the gate, uvicorn on the shared and on the replica's own port."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from core.errors import InferlogError, Refusal
from core.limits import Limits
from producer_api.auth import ApiKeys, load_keys
from producer_api.bounded_http import bounded_http
from producer_api.context import ApiContext
from producer_api.error_responses import error_response
from producer_api.gate import Gate
from producer_api.hot_routes import HotRoutes, hot_routes
from producer_api.pipeline import Pipeline
from producer_api.routes import openai, requests, responses
from producer_api.settings import ApiSettings
from producer_api.tickets import TicketAdmission, Tickets
from runtime.metrics import Metrics
from topics.ports import Log

BACKLOG = 2048
ANSWER_SECONDS_MIN = 1.0

_log = logging.getLogger(__name__)


def make_app(
    pipeline: Pipeline,
    keys: ApiKeys,
    limits: Limits,
    metrics: Metrics,
    cors_origins: Sequence[str] = (),
) -> Any:
    """The whole ASGI application."""
    app = FastAPI(title="Inferlog", version="0.1.0", redirect_slashes=False)
    tickets = Tickets(keys.common_secret, limits)
    app.state.context = ApiContext(pipeline, limits, metrics, tickets)
    app.include_router(openai.router)
    app.include_router(requests.router)
    app.include_router(responses.router)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> Response:
        """Requests may be sent here."""
        reason = pipeline.not_ready()
        status = "ok" if reason is None else reason
        return JSONResponse({"status": status}, status_code=200 if reason is None else 503)

    async def refused(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        metrics.refused.labels(error.code).inc()
        return error_response(error)

    async def by_framework(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        message = (
            "This method is not allowed here." if error.status_code == 405 else "No such route."
        )
        return error_response(Refusal(code, message))

    async def failed(_: HttpRequest, error: Exception) -> Response:
        _log.error("a handler failed: %s", type(error).__name__, exc_info=error)
        metrics.refused.labels("internal_error").inc()
        return error_response(Refusal("internal_error", "The API failed to answer this request."))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, by_framework)
    app.add_exception_handler(Exception, failed)

    async def on_failure(http: HttpRequest, error: Exception) -> Response:
        return await (refused if isinstance(error, Refusal) else failed)(http, error)

    making = [*openai.router.routes, *requests.router.routes, *responses.router.routes]
    hot = HotRoutes(app, hot_routes(making), on_failure)
    admission = TicketAdmission(tickets, pipeline, metrics)
    gated: Any = Gate(hot, keys, limits, metrics, admission)
    if cors_origins:
        gated = CORSMiddleware(
            gated,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "authorization",
                "content-type",
                "idempotency-key",
                "last-event-id",
                "prefer",
                "inferlog-timeout",
            ],
            expose_headers=["x-request-id", "idempotent-replayed"],
        )
    return gated


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that other replicas may share. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the end of the process is ours to decide."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leaves the signals alone."""
        yield


class ApiService:
    """`start`, wait on `failed` (or a signal), `drain`, `stop`."""

    def __init__(
        self, settings: ApiSettings, log: Log | None = None, metrics: Metrics | None = None
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self._keys = load_keys(settings.api_key, settings.api_keys_file)
        self.pipeline = Pipeline(
            log or self._open_log(),
            settings.limits,
            self.metrics,
            replica_index=settings.replica_index,
            replica_count=settings.replica_count,
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def _open_log(self) -> Log:
        """Its questions end in time for the client who waits for the answer to be told 503."""
        it = self.settings
        seconds = max(ANSWER_SECONDS_MIN, it.limits.publish_seconds)
        name = f"inferlog-api-{it.replica_index}"
        return it.cluster.open(name, self.metrics, answer_seconds=seconds)

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when requests are served, with the tasks whose end is the end of the process."""
        settings = self.settings
        app = make_app(
            self.pipeline, self._keys, settings.limits, self.metrics, settings.cors_origins
        )
        await self.pipeline.start()
        config = uvicorn.Config(
            app,
            http=bounded_http(settings.limits, self.metrics),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nothing here asks who is at the other end
            timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
            timeout_keep_alive=30,
            server_header=False,
        )
        ports = [settings.port, *([settings.extra_port] if settings.extra_port else [])]
        sockets: list[socket.socket] = []
        try:
            sockets.extend(listen(settings.host, port) for port in ports)
        except OSError as error:
            for opened in sockets:
                opened.close()
            await self.pipeline.stop()
            raise InferlogError(
                f"cannot listen on {settings.host}:{ports[len(sockets)]}: {error.strerror}"
            ) from error
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets), name="http-server")
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        failing = asyncio.create_task(self._fail_with_pipeline(), name="pipeline")
        self._failing = failing
        return [self._serving, failing]

    async def _fail_with_pipeline(self) -> None:
        await asyncio.shield(self.pipeline.failed)

    async def drain(self) -> None:
        """New requests are refused; open streams end with an id to resume from."""
        await self.pipeline.drain()
        if self._server is not None:
            self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})

    async def stop(self) -> None:
        """Ends everything. Idempotent."""
        if self._server is not None:
            self._server.should_exit = True
            self._server.force_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=5.0)
            self._failing.cancel()
            await asyncio.gather(self._failing, return_exceptions=True)
        await self.pipeline.stop()
