"""From a reply stream to an HTTP response: a whole body, or server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from fastapi import Request as HttpRequest
from starlette.responses import Response

from core.errors import InferlogError, Refusal
from core.limits import Limits
from core.stream import Visible, is_terminal
from producer_api.departure import departure_of
from producer_api.direct import Direct, pieces_of
from producer_api.error_responses import JSON, error_response, refusal_of
from producer_api.event_stream import HEARTBEAT, EventStream
from producer_api.rendering import Renderer, whole_body
from producer_api.streams import ClientGone, ReplyStream, ShuttingDown
from schemas.replies import Tokens
from schemas.requests import RequestInfo

RETRY_MS = 1000

OnGone = Callable[[], None]


def _says_something(event: Visible) -> bool:
    return isinstance(event, Tokens) or is_terminal(event)


def _is_there(_: Visible) -> bool:
    return True


class Answering:
    """Waits for a stream on behalf of one HTTP request; `on_gone` is called if its client leaves."""

    def __init__(
        self,
        http: HttpRequest,
        stream: ReplyStream,
        limits: Limits,
        total_seconds: float,
        on_gone: OnGone,
    ) -> None:
        self._http = http
        self._stream = stream
        self._limits = limits
        self._until_s = time.monotonic() + total_seconds + limits.deadline_margin_seconds
        self._on_gone = on_gone
        self._departure = departure_of(http.scope)
        self._watcher: asyncio.Task[None] | None = None
        self._complete = False
        self.events: list[Visible] = []

    async def whole(self, headers: dict[str, str]) -> Response:
        """The complete answer, or the error it ended with."""
        try:
            await self._collect(is_terminal, None)
        except ClientGone:
            self._on_gone()
            return Response(status_code=499)
        except InferlogError as error:
            return error_response(_as_refusal(error, self._stream), headers)
        finally:
            await self._let_go()
        refusal = refusal_of(self.events[-1])  # type: ignore[arg-type]  # the last is a terminal
        if refusal is not None:
            return error_response(refusal, headers)
        body = orjson.dumps(whole_body(self._stream.request_id, self.events))
        return Response(body, headers=headers, media_type=JSON)

    async def streamed(
        self, renderer: Renderer, headers: dict[str, str], *, status_until: int | None = 0
    ) -> Response:
        """Server-sent events; what fails before the first byte is an HTTP status.

        The request's own failure is one if there are at most `status_until` tokens of its answer;
        None: it is always an event, and the first byte waits for no token.
        """
        enough = _says_something if status_until is not None else _is_there
        try:
            await self._collect(enough, self._limits.first_byte_seconds)
        except ClientGone:
            await self._let_go()
            self._on_gone()
            return Response(status_code=499)
        except InferlogError as error:
            await self._let_go()
            return error_response(_as_refusal(error, self._stream), headers)
        except BaseException:
            await self._let_go()
            raise
        refusal = self._refusal_at_once(status_until)
        if refusal is not None:
            await self._let_go()
            return error_response(refusal, headers)
        return EventStream(self._frames(renderer), headers, self._end)

    def _refusal_at_once(self, status_until: int | None) -> Refusal | None:
        last = self.events[-1] if self.events else None
        if last is None or status_until is None or self._stream.position > status_until:
            return None
        return refusal_of(last) if is_terminal(last) else None  # type: ignore[arg-type]  # just checked

    async def _collect(self, enough: Callable[[Visible], bool], seconds: float | None) -> None:
        """Gathers events until one is enough, or the seconds are over."""
        if self._departure is not None:
            self._departure.tell(self._stream.abandon)
        else:
            self._watcher = asyncio.create_task(self._watch_client())
        until_s = (
            self._until_s if seconds is None else min(self._until_s, time.monotonic() + seconds)
        )
        while True:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                if seconds is None:
                    raise Refusal("deadline_exceeded", "The request's time ran out.")
                return
            events = await self._stream.next(min(left_s, 30.0))
            self.events += events
            if any(enough(event) for event in events):
                return

    async def _watch_client(self) -> None:
        while True:
            message = await self._http.receive()
            if message["type"] == "http.disconnect":
                self._stream.abandon()
                return

    async def _frames(self, renderer: Renderer) -> AsyncGenerator[bytes, None]:
        pieces = pieces_of(self._http.scope)
        try:
            # in front of the first event, not on its own: an event without data breaks SDKs
            retry = b"retry: %d\n" % RETRY_MS
            events = self.events
            direct: Direct | None = None
            while True:
                if data := renderer.render(events):
                    yield retry + data if retry else data
                    retry = b""
                    if direct is None and pieces is not None:
                        direct = Direct(renderer, pieces)
                        self._stream.hand_over_to(direct)
                if events and is_terminal(events[-1]):
                    self._complete = True
                    return
                while not (events := await self._next(direct)):
                    yield HEARTBEAT
        except ClientGone:
            return
        except InferlogError as error:
            self._complete = True  # it runs on: the client resumes it from its position elsewhere
            yield renderer.failure(_as_refusal(error, self._stream))

    async def _next(self, direct: Direct | None) -> list[Visible]:
        """The next events; [] if the client has been sent nothing for the time of a heartbeat."""
        silent_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            left_s = self._until_s - now_s
            if left_s <= 0:
                raise Refusal("deadline_exceeded", "The request's time ran out.")
            if direct is not None:
                silent_s = max(silent_s, direct.written_s)
            quiet_s = silent_s + self._limits.heartbeat_seconds - now_s
            if quiet_s <= 0:
                return []
            if events := await self._stream.next(min(left_s, quiet_s)):
                return events

    async def _end(self) -> None:
        """The stream was sent to its end, or its client has left before."""
        if not self._complete:
            self._on_gone()
        await asyncio.shield(self._let_go())

    async def _let_go(self) -> None:
        if self._departure is not None:
            self._departure.forget(self._stream.abandon)
        if self._watcher is not None:
            self._watcher.cancel()
        await self._stream.close()


def _as_refusal(error: InferlogError, stream: ReplyStream) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ShuttingDown):
        return Refusal(
            "shutting_down",
            "This replica is shutting down. The request runs on: resume it at "
            f"/v1/requests/{stream.request_id}/stream with Last-Event-ID.",
            retry_after_seconds=1,
        )
    return Refusal("unavailable", "The log cannot be read right now.", retry_after_seconds=2)


def status_object(request_id: str, state: str, info: RequestInfo, **more: Any) -> dict[str, Any]:
    """The object of `/v1/requests`."""
    return {
        "id": request_id,
        "object": "request",
        "status": state,
        "endpoint": info.endpoint,
        "model": info.model,
        **more,
    }
