"""Tokens written past their task, by the real server to a real socket."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from producer_api import direct
from producer_api.event_stream import HEARTBEAT
from producer_api.mailbox import Mailbox
from producer_api.streams import ReplyStream
from producer_api.submission import Draft, Submission
from tests.fake_pipeline import KEY, MODEL, REQUEST_ID, FakePipeline, finished, tokens
from tests.integration.test_slow_clients import LIMITS, serving

BODY = json.dumps(
    {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
).encode()
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode()


class Fed(FakePipeline):
    """Its streams are real, and fed through their mailboxes."""

    async def submit(self, draft: Draft, **_: Any) -> Submission:
        del draft
        self.box = Mailbox(("a", REQUEST_ID), 1024, 256 * 1024)
        self.stream = ReplyStream(
            self.box.key,
            asyncio.Event(),
            lambda _: pytest.fail("the log is not read"),
            lambda *_: -60.0,
            self.box,
        )
        return Submission(REQUEST_ID, "new", self.stream)

    def say(self, seq: int, text: str) -> None:
        self.box.put(tokens(1, seq=seq, text=text))
        self.box.wake()

    def finish(self, seq: int) -> None:
        self.box.put(tokens(1, seq=seq, text="end", end=True))
        self.box.put(finished(seq + 1))
        self.box.wake()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each piece that no task has written."""
    sizes: list[int] = []
    write = direct.Pieces.write

    def counted(pieces: direct.Pieces, piece: bytes) -> None:
        sizes.append(len(piece))
        write(pieces, piece)

    monkeypatch.setattr(direct.Pieces, "write", counted)
    return sizes


async def begun(pipeline: Fed, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose answer has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(HEAD + BODY)
    while not hasattr(pipeline, "stream"):
        await asyncio.sleep(0.01)
    pipeline.say(0, "t0 ")
    await reader.readuntil(b"t0 ")
    await reader.readuntil(b"\r\n")
    await asyncio.sleep(0.05)
    return reader, writer


def text_of(body: bytes) -> str:
    """What the chunks of an answer say, framing and all taken off."""
    events = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        events, body = events + body[: int(size, 16)], body[int(size, 16) + 2 :]
    lines = [line[6:] for line in events.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_an_answer_comes_whole_and_in_order(written: list[int]) -> None:
    pipeline = Fed()
    async with serving(pipeline) as server, asyncio.timeout(20):
        reader, writer = await begun(pipeline, server.port)
        for seq in range(1, 200):
            pipeline.say(seq, f"t{seq} ")
            if seq % 10 == 0:
                await asyncio.sleep(0)
        pipeline.finish(200)
        rest = await reader.readuntil(b"0\r\n\r\n")
        assert text_of(rest) == "".join(f"t{seq} " for seq in range(1, 200)) + "end"
        assert len(written) == 199
        # the connection is kept, and its next answer is another's
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.readuntil(b"\r\n")
        writer.close()
    assert pipeline.cancelled == []


async def test_a_client_that_reads_nothing_holds_no_more_than_before(written: list[int]) -> None:
    pipeline = Fed()
    async with serving(pipeline) as server, asyncio.timeout(20):
        _, writer = await begun(pipeline, server.port)
        text = "x" * 8_000
        for seq in range(1, 3_000):
            pipeline.say(seq, text)
            await asyncio.sleep(0)
            if pipeline.box.overflowed:
                break
        assert pipeline.box.overflowed
        # what the kernel's buffers take on both sides, and 64 KiB of the server's own
        assert sum(written) < 12_000_000
        before = len(written)
        pipeline.say(9_999, text)
        assert len(written) == before
        writer.transport.abort()
        while not pipeline.cancelled:
            await asyncio.sleep(0.01)
    assert len(pipeline.cancelled) == 1


@pytest.mark.parametrize("behind", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_client_that_leaves_is_noticed_once(written: list[int], behind: bytes) -> None:
    """Nothing is read of a connection whose next request waits: there only a write meets its end."""
    pipeline = Fed()
    async with serving(pipeline) as server, asyncio.timeout(20):
        _, writer = await begun(pipeline, server.port)
        writer.write(behind)
        pipeline.say(1, "t1 ")
        await asyncio.sleep(0.1)
        writer.transport.abort()
        seq = 2
        while not pipeline.cancelled:
            pipeline.say(seq, "more ")
            seq += 1
            await asyncio.sleep(0.005)
        before = len(written)
        pipeline.say(seq, "more ")
        assert len(written) == before
    assert len(pipeline.cancelled) == 1


async def test_a_heartbeat_follows_silence_and_no_token(written: list[int]) -> None:
    pipeline = Fed()
    limits = replace(LIMITS, heartbeat_seconds=0.5)
    async with serving(pipeline, limits) as server, asyncio.timeout(20):
        reader, writer = await begun(pipeline, server.port)
        for seq in range(1, 31):  # for three times as long as a silence may last
            pipeline.say(seq, f"t{seq} ")
            await asyncio.sleep(0.05)
        assert HEARTBEAT not in await reader.readuntil(b"t30 ")
        await reader.readuntil(HEARTBEAT)
        writer.close()
    assert len(written) == 30
