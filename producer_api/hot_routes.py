"""The short way in for requests that make requests: no routing table, no dependency injection.

The framework's way through its middlewares, routes and dependencies costs as much CPU as all of ours
(docs/performance.md). It still serves everything else, and documents these routes as well.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

Handler = Callable[[HttpRequest], Awaitable[Response]]
OnFailure = Callable[[HttpRequest, Exception], Awaitable[Response]]


def hot_handlers(routes: Iterable[BaseRoute]) -> dict[str, Handler]:
    """The handlers of all POST routes whose path is fixed; they take the request and nothing else."""
    return {
        it.path: it.endpoint
        for it in routes
        if isinstance(it, APIRoute) and it.methods == {"POST"} and "{" not in it.path
    }


class HotRoutes:
    """Pure ASGI, before the framework. `on_failure` turns what a handler raises into an answer."""

    def __init__(self, app: Any, handlers: dict[str, Handler], on_failure: OnFailure) -> None:
        self._app = app
        self._handlers = handlers
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or hands on."""
        handler = self._handler(scope)
        if handler is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app  # where handlers find the process's parts
        http = HttpRequest(scope, receive, send)
        try:
            response = await handler(http)
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer
            response = await self._on_failure(http, error)
        await response(scope, receive, send)

    def _handler(self, scope: MutableMapping[str, Any]) -> Handler | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        return self._handlers.get(scope["path"])
