"""The short way in for requests that make requests: no routing table, no dependency injection.

The framework's way through its middlewares, routes and dependencies costs as much CPU as all of ours
(docs/performance.md). It still serves everything else, and documents these routes as well.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

OnFailure = Callable[[HttpRequest, Exception], Awaitable[Response]]


def hot_routes(routes: Iterable[BaseRoute]) -> dict[str, APIRoute]:
    """All POST routes whose path is fixed; their handlers take the request and nothing else."""
    return {
        it.path: it
        for it in routes
        if isinstance(it, APIRoute) and it.methods == {"POST"} and "{" not in it.path
    }


class HotRoutes:
    """Pure ASGI, before the framework. `on_failure` turns what a handler raises into an answer."""

    def __init__(self, app: Any, routes: Mapping[str, APIRoute], on_failure: OnFailure) -> None:
        self._app = app
        self._routes = routes
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or hands on."""
        route = self._route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app  # where handlers find the process's parts
        scope["route"] = route  # what answers are counted by
        http = HttpRequest(scope, receive, send)
        try:
            response: Response = await route.endpoint(http)
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer
            response = await self._on_failure(http, error)
        await response(scope, receive, send)

    def _route(self, scope: MutableMapping[str, Any]) -> APIRoute | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        return self._routes.get(scope["path"])
