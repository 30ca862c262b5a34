"""What every request passes first: bounds on headers and body, time to receive it, and the key.

Default deny: all but `/health/…` needs a key, whatever the route, known or not; the one stream that a
ticket names may be opened with it instead. The body is received here, whole and bounded, so that no
handler can forget to.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any

from prometheus_client import Counter

from core.errors import Refusal
from core.limits import Limits
from producer_api.auth import ApiKeys
from producer_api.error_responses import error_response
from producer_api.tickets import TicketAdmission
from runtime.in_time import in_time
from runtime.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})


class ClientLeft(Exception):
    """The connection closed while the body was being received."""


class Gate:
    """Pure ASGI; `scope["tenant"]` is who speaks, `scope["body"]` what was sent."""

    def __init__(
        self,
        app: App,
        keys: ApiKeys,
        limits: Limits,
        metrics: Metrics,
        tickets: TicketAdmission,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._tickets = tickets
        self._responses = cache(metrics.http_responses.labels)  # of our routes and their statuses

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Checks, receives, hands on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._metrics
        send = _noting(send, scope, self._responses)
        metrics.open_requests.inc()
        try:
            await self._pass(scope, receive, send)
        finally:
            metrics.open_requests.dec()

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            headers = self._check_headers(scope)
            if scope["path"] not in OPEN_PATHS:
                scope["tenant"] = await self._authenticate(scope, headers)
            scope["body"] = await self._receive_body(headers, receive)
            scope["arrived_s"] = asyncio.get_running_loop().time()
        except Refusal as refusal:
            self._metrics.refused.labels(refusal.code).inc()
            close = {"Connection": "close"} if refusal.kind.status in (408, 413, 431) else None
            await error_response(refusal, close)(scope, receive, send)
            return
        except ClientLeft:
            return
        try:
            await self._app(scope, receive, send)
        finally:
            del scope["body"]  # a connection keeps its last scope for as long as it is idle

    def _check_headers(self, scope: MutableMapping[str, Any]) -> dict[bytes, bytes]:
        pairs = scope["headers"]
        size = sum(len(name) + len(value) for name, value in pairs)
        if len(pairs) > self._limits.headers_count or size > self._limits.headers_bytes:
            raise Refusal(
                "headers_too_large",
                f"At most {self._limits.headers_count} headers of {self._limits.headers_bytes} "
                "bytes together.",
            )
        return dict(pairs)

    async def _authenticate(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]
    ) -> str:
        authorization = headers.get(b"authorization")
        tenant = self._keys.tenant(authorization)
        if tenant is None and authorization is None:
            tenant = await self._tickets.admit(scope)
        if tenant is None:
            raise Refusal(
                "invalid_api_key", "No valid API key: send `Authorization: Bearer <key>`."
            )
        return tenant

    async def _receive_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        if declared == b"0" and b"transfer-encoding" not in headers:
            return b""
        until_s = asyncio.get_running_loop().time() + self._limits.receive_seconds
        try:
            return await in_time(until_s, self._receive_parts(receive))
        except TimeoutError:
            raise Refusal(
                "request_timeout",
                f"The request was not received within {self._limits.receive_seconds} s.",
            ) from None

    async def _receive_parts(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        text = f"A request body may have at most {self._limits.body_bytes} bytes."
        return Refusal("request_too_large", text)


def _noting(
    send: Send, scope: MutableMapping[str, Any], responses: Callable[[str, int], Counter]
) -> Send:
    """Counts the answer and sees that it can be named; what follows its head passes as it is.

    It is counted by its route's pattern, never by its path: that may hold an id. Answers that belong
    to no request get an id of their own.
    """

    async def send_noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = getattr(scope.get("route"), "path", "none")
            responses(route, message["status"]).inc()
            headers = message.setdefault("headers", [])
            if not any(name.lower() == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", str(uuid.uuid4()).encode()))
        await send(message)

    return send_noted
