"""Metrics and health of a process on a port of their own, away from what clients may reach.

Served by a thread: when the event loop is stuck, the metrics still say so.
"""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

REQUEST_SECONDS_MAX = 5.0

Probe = Callable[[], tuple[bool, Mapping[str, Any]]]


class PortTaken(OSError):
    """The port for metrics cannot be had; the message says which and what to do."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A second process on the same port must fail, not share or steal it.
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)


class _SharingServer(_Server):
    allow_reuse_port = True


class HealthServer:
    """`GET /metrics` (Prometheus text) and `GET /health` (200 or 503 with a JSON object).

    `probe` says whether the process is well, and any facts; it is called from the server's thread.
    `shared`: whoever started this process holds the port for it, bound and open to be shared.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        probe: Probe,
        *,
        shared: bool = False,
    ) -> None:
        self._kind = _SharingServer if shared else _Server
        self._host = host
        self._port = port
        self._registry = registry
        self._probe = probe
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port served; that asked for, or the one found if 0 was asked for."""
        return self._server.server_address[1] if self._server else self._port

    def start(self) -> None:
        """Binds and serves. Raises PortTaken."""
        registry, probe = self._registry, self._probe

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS_MAX

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif path == "/health":
                    well, facts = probe()
                    body = json.dumps({"ok": well, **facts}).encode()
                    self._answer(200 if well else 503, "application/json", body)
                else:
                    self._answer(404, "text/plain; charset=utf-8", b"/metrics or /health\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """A scrape every few seconds is not worth a line."""

        try:
            self._server = self._kind((self._host, self._port), Handler)
        except OSError as error:
            raise PortTaken(
                f"metrics cannot be served on {self._host}:{self._port} "
                f"({error.strerror or error}): choose another port (INFERLOG_METRICS_PORT)"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="health",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Lets go of the port. Idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(timeout=2.0)
            self._server = None
            self._thread = None
