"""The least an HTTP server can do: every request gets the same stream of 16 tokens. For measuring clients."""

import asyncio
import json
import sys

import httptools
import uvloop


def _chunk(content: str) -> str:
    delta = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    chunk = {
        "id": "chatcmpl-00000000-0000-7000-8000-000000000000",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "scripted",
        "choices": [delta],
    }
    return f"id: 0.0\ndata: {json.dumps(chunk)}\n\n"


def _answer() -> bytes:
    """As long as the pipeline's: the role, all tokens at once, the end."""
    body = _chunk("") + _chunk("abcdef.00 " * 16) + _chunk("") + "data: [DONE]\n\n"
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return f"{head}{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode()


ANSWER = _answer()


class Bare(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Kept for the answers."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Hands on to the parser."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answers."""
        if self._transport is not None:
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    """For ever."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
