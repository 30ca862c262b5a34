"""A client that leaves is noticed by its connection, whatever its requests wait for."""

import asyncio
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from core.limits import DEFAULT_LIMITS
from producer_api.bounded_http import BoundedHttp, bounded_http
from producer_api.departure import departure_of
from runtime.metrics import Metrics
from tests.unit.test_answer_writes import Wire


class Waiting:
    """An application whose requests wait for their clients to leave, or for `/short` not at all."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        path, departure = scope["path"], departure_of(scope)
        assert departure is not None

        def left() -> None:
            self.left.append(path)

        departure.tell(left)
        self.waiting.append(path)
        if path == "/short":
            departure.forget(left)
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body", "body": b""})
            return
        await asyncio.Event().wait()


def connection(app: Any) -> tuple[BoundedHttp, Wire]:
    kind = bounded_http(DEFAULT_LIMITS, Metrics())
    config = Config(app, http=kind, log_config=None, access_log=False)
    config.load()
    http, wire = kind(config, ServerState(), {}), Wire()
    http.connection_made(wire)
    return http, wire


@pytest.fixture
async def app() -> Any:
    yield Waiting()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "run_asgi" in repr(task.get_coro()):
            task.cancel()


async def test_all_that_wait_are_told_and_what_was_answered_is_not(app: Waiting) -> None:
    http, _ = connection(app)
    for path in (b"short", b"long"):
        http.data_received(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        await asyncio.sleep(0.01)
    assert app.waiting == ["/short", "/long"]
    http.connection_lost(None)
    assert app.left == ["/long"]
    http._departure.happen()
    assert app.left == ["/long"]


async def test_who_asks_too_late_is_told_at_once(app: Waiting) -> None:
    http, _ = connection(app)
    http.data_received(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
    http.connection_lost(None)  # its task has not begun
    await asyncio.sleep(0.01)
    assert app.left == ["/long"]


async def test_behind_a_large_body_the_connection_is_read_on(app: Waiting) -> None:
    http, wire = connection(app)
    size = HIGH_WATER_LIMIT + 1
    head = b"POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * size)
    http.data_received(head + size * b"x")
    await asyncio.sleep(0.01)
    http.data_received(size * b"x")
    assert wire.paused
    await asyncio.sleep(0.01)
    assert app.waiting == ["/long"]
    assert not wire.paused, "nobody would notice that the client leaves"
