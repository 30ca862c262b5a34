"""Server-sent events as an HTTP response: a start, pieces as they come, an end. See ADR 8."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT = b": the connection is alive\n\n"
"""A comment: clients skip it, proxies see that something is being sent."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "keep-alive",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Sends each piece of `frames` at once, in one task: that of the request.

    It neither watches the client nor counts seconds: whoever makes `frames` ends it when the client
    is gone, and puts heartbeats among the pieces. `on_end` is awaited whatever happens, once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._on_end = on_end
        self.init_headers({**_HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what `send` and `frames` raise; the connection is then cut by the server."""
        del scope, receive
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            await send(start)
            async for data in self._frames:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            try:
                await self._frames.aclose()
            finally:
                await self._on_end()
