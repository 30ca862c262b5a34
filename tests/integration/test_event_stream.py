"""Server-sent events: heartbeats, an end whatever happens, and a client that leaves."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from core.limits import DEFAULT_LIMITS
from producer_api.event_stream import HEARTBEAT, EventStream
from tests.fake_pipeline import MODEL, FakePipeline, client, finished, tokens

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Server:
    """What an ASGI server sees of a response."""

    def __init__(self, fail_at: int = 1000) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self.ends = 0
        self._fail_at = fail_at

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if len(self.sent) == self._fail_at:
            raise OSError("the connection is gone")
        self.sent.append(message)

    async def receive(self) -> MutableMapping[str, Any]:
        raise AssertionError("the response does not listen")

    async def on_end(self) -> None:
        self.ends += 1

    async def serve(self, frames: AsyncGenerator[bytes, None]) -> None:
        response = EventStream(frames, {"X-Request-Id": "r"}, self.on_end)
        await response({"type": "http"}, self.receive, self.send)


class Frames:
    def __init__(self) -> None:
        self.closed = False

    async def make(self, *, then_hang: bool = False) -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            if then_hang:
                await asyncio.sleep(3600)
            yield b"data: 2\n\n"
        finally:
            self.closed = True


async def test_every_piece_is_sent_as_it_comes_and_then_the_end() -> None:
    server, frames = Server(), Frames()
    await server.serve(frames.make())
    start, *pieces = server.sent
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-request-id"] == b"r"
    assert [it["body"] for it in pieces] == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert [it["more_body"] for it in pieces] == [True, True, False]
    assert server.ends == 1


@pytest.mark.parametrize("fail_at", [0, 1, 2, 3])
async def test_a_connection_that_breaks_ends_the_frames_and_is_told(fail_at: int) -> None:
    server, frames = Server(fail_at), Frames()
    with pytest.raises(OSError, match="gone"):
        await server.serve(frames.make())
    assert frames.closed == (fail_at > 0)  # not begun: nothing to end
    assert server.ends == 1


async def test_a_server_that_gives_up_ends_the_frames() -> None:
    server, frames = Server(), Frames()
    serving = asyncio.create_task(server.serve(frames.make(then_hang=True)))
    while len(server.sent) < 2:
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert frames.closed
    assert server.ends == 1


async def test_silence_is_broken_by_comments_that_clients_skip() -> None:
    limits = replace(DEFAULT_LIMITS, heartbeat_seconds=0.05, first_byte_seconds=0.05)
    pipeline = FakePipeline([[tokens(1, text="a")]])
    got = b""
    async with client(pipeline, limits) as http:
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await asyncio.sleep(0.5)
        pipeline.streams[0].add([tokens(1, seq=1, text="b", end=True), finished(2)])
        got = (await asking).content
    assert got.count(HEARTBEAT) >= 2
    assert b'"content":"a"' in got
    assert got.index(HEARTBEAT) < got.index(b'"content":"b"')
    assert got.endswith(b"data: [DONE]\n\n")
    assert pipeline.cancelled == []
