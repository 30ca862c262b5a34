"""What one connection writes for its answers: a head with its body, in order, nothing twice."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from core.limits import DEFAULT_LIMITS
from producer_api.bounded_http import BoundedHttp, bounded_http
from producer_api.gate import Gate
from runtime.metrics import Metrics

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Wire(asyncio.Transport):
    """Keeps its writes apart; as uvloop's, it raises once the connection is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = self.gone = self.paused = False

    def write(self, data: Any) -> None:
        if self.gone:
            raise RuntimeError("the handler is closed")
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing or self.gone

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def answer(scope: Any, receive: Any, send: Send) -> None:
    """By path: how an answer may come."""
    await receive()
    path, start = scope["path"], {"type": "http.response.start", "status": 200, "headers": []}
    if path == "/whole":
        start["headers"] = [(b"content-length", b"4")]
        await send(start)
        await send({"type": "http.response.body", "body": b"body"})
    elif path == "/nothing":
        await send({**start, "status": 204})
        await send({"type": "http.response.body", "body": b""})
    elif path == "/stream":
        await send(start)
        for piece in (b"one", b"two"):
            await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif path == "/fails":
        await send({**start, "headers": [(b"content-length", b"4")]})
        raise ValueError("between head and body")


class Connection:
    """A connection to `answer`."""

    def __init__(self) -> None:
        kind = bounded_http(DEFAULT_LIMITS, Metrics())
        config = Config(answer, http=kind, log_config=None, access_log=False, server_header=False)
        config.date_header = False
        config.load()
        self.http: BoundedHttp = kind(config, ServerState(), {})
        self.wire = Wire()
        self.http.connection_made(self.wire)

    async def ask(self, *requests: bytes) -> list[bytes]:
        """All at once; what was written half a tenth of a second later."""
        self.http.data_received(b"".join(it + b" HTTP/1.1\r\nHost: a\r\n\r\n" for it in requests))
        await asyncio.sleep(0.05)
        return self.wire.writes


@pytest.fixture
async def connection() -> Any:
    made = Connection()
    yield made
    made.http.connection_lost(None)


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"


async def test_head_and_body_are_one_write(connection: Connection) -> None:
    assert await connection.ask(b"GET /whole") == [WHOLE]


async def test_answers_to_requests_sent_together_keep_their_order(connection: Connection) -> None:
    found = await connection.ask(b"GET /whole", b"HEAD /whole", b"GET /stream", b"GET /whole")
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    stream = [chunked, b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"]
    assert found == [WHOLE, WHOLE.removesuffix(b"body"), *stream, WHOLE]


async def test_an_answer_without_a_body_is_sent(connection: Connection) -> None:
    assert await connection.ask(b"GET /nothing") == [b"HTTP/1.1 204 No Content\r\n\r\n"]


async def test_the_head_of_a_stream_does_not_wait_for_its_first_piece(
    connection: Connection,
) -> None:
    connection.http.data_received(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(4):
        await asyncio.sleep(0)
    assert [it.partition(b"\r\n")[0] for it in connection.wire.writes] == [b"HTTP/1.1 200 OK"]


async def test_a_head_without_the_body_it_promised_is_sent_and_the_connection_ends(
    connection: Connection,
) -> None:
    assert await connection.ask(b"GET /fails") == [WHOLE.removesuffix(b"body")]
    assert connection.wire.closing


async def test_a_client_that_leaves_behind_the_head_raises_nothing(
    connection: Connection,
) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
    connection.http.data_received(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    while not connection.http.cycle.response_started:
        await asyncio.sleep(0)
    del connection.wire.writes[:]
    connection.wire.gone = True
    connection.http.connection_lost(None)
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().set_exception_handler(None)
    assert failures == []


async def test_a_head_that_is_all_is_sent_before_a_shutdown_closes(connection: Connection) -> None:
    connection.http.data_received(b"HEAD /whole HTTP/1.1\r\nHost: a\r\n\r\n")
    while not connection.http.cycle.response_complete:
        await asyncio.sleep(0)
    connection.http.shutdown()
    await asyncio.sleep(0.05)
    assert connection.wire.writes == [WHOLE.removesuffix(b"body")]
    assert connection.wire.closing


async def test_a_body_is_not_kept_when_its_answer_is_there() -> None:
    seen = []

    async def app(scope: Any, _receive: Any, send: Send) -> None:
        seen.append(scope["body"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"asked", "more_body": False}

    async def send(_message: Any) -> None:
        pass

    unused: Any = None
    gate = Gate(app, unused, DEFAULT_LIMITS, Metrics(), unused)
    scope = {"type": "http", "path": "/health/live", "headers": [(b"content-length", b"5")]}
    await gate(scope, receive, send)
    assert seen == [b"asked"]
    assert "body" not in scope
