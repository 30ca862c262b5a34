"""The load client: a process of its own, told by lines of JSON on stdin what to ask for.

Each line is a `benchmarks.load.Order`, each answer a line of JSON on stdout. Requests go over
keep-alive connections, closed loop: every client asks for the next as soon as its answer is there.
Two ways to speak HTTP, to be compared: `raw` (asyncio protocols and httptools) and `httpx`.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, cast

import httptools
import httpx
import uvloop

from benchmarks.load import PATHS, Order

ANSWER_SECONDS = 120.0
EVENTS_AT: Counter[int] = Counter()


def prompt_of(number: int, words: int = 5) -> str:
    """A prompt of its own for each request."""
    return f"request {number} of the benchmark" + " again" * (words - 5)


def payload(order: Order, number: int) -> bytes:
    """The body of one request."""
    body: dict[str, object] = {
        "model": "scripted",
        "max_tokens": order.tokens,
        "messages": [{"role": "user", "content": prompt_of(number, order.prompt_words)}],
    }
    if order.kind == "streamed":
        body["stream"] = True
    if order.kind == "accept":
        body = {"endpoint": PATHS["whole"], "body": body}
    return json.dumps(body).encode()


def expected_text(order: Order, number: int) -> str:
    """What the scripted engine says to it."""
    prefix = hashlib.sha256(prompt_of(number, order.prompt_words).encode()).hexdigest()[:6]
    return "".join(f"{prefix}.{i} " for i in range(order.tokens))


def said(order: Order, body: bytes) -> str:
    """The text of an answer."""
    if order.kind == "whole":
        text: str = json.loads(body)["choices"][0]["message"]["content"]
        return text
    parts = []
    for line in body.decode().split("\n"):
        if line.startswith("data: {"):
            choices = json.loads(line[6:])["choices"]
            # a delta without text may say so by null
            parts += [choice["delta"].get("content") or "" for choice in choices]
    return "".join(parts)


def verify(order: Order, number: int, status: int, body: bytes) -> None:
    """Raises SystemExit unless the answer is whole; with `check`, unless it is word for word right."""
    good = status == (202 if order.kind == "accept" else 200)
    if good and order.kind == "streamed":
        good = body.endswith(b"data: [DONE]\n\n")
    if good and order.check and order.kind != "accept":
        good = said(order, body) == expected_text(order, number)
    if not good:
        shown = body[:300].decode(errors="replace") if status >= 400 else f"{len(body)} bytes"
        raise SystemExit(f"request {number}: status {status}, this is not the answer: {shown}")


class Connection(Protocol):
    """Asks once at a time."""

    first_byte_s: float

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        ...

    async def close(self) -> None:
        """Lets go of the socket."""
        ...


class RawConnection(asyncio.Protocol):
    """HTTP/1.1 by hand: one write per request, httptools for what comes back."""

    def __init__(self, order: Order) -> None:
        self.first_byte_s = 0.0
        self._order = order
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._head = (
            f"Host: 127.0.0.1:{order.port}\r\nAuthorization: Bearer {order.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Kept for the first `ask`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Hands on to the parser, which calls the three below."""
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._parts:
            self.first_byte_s = time.perf_counter()
        self._parts.append(data)
        if self._order.count_events:
            EVENTS_AT[int(time.monotonic())] += data.count(b"data: ")

    def on_message_complete(self) -> None:
        """The answer is whole."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the API"))

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Opens the connection at the first call."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, "127.0.0.1", self._order.port)
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._parts = []
        self._answer = loop.create_future()
        head = f"POST {path} HTTP/1.1\r\n{self._head}{len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return await asyncio.wait_for(self._answer, ANSWER_SECONDS)

    async def close(self) -> None:
        """Lets go of the socket."""
        if self._transport is not None:
            self._transport.close()


class HttpxConnection:
    """The same over one httpx client per connection."""

    def __init__(self, order: Order) -> None:
        self.first_byte_s = 0.0
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{order.port}",
            headers={"Authorization": f"Bearer {order.key}", "Content-Type": "application/json"},
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Streams, so that the first byte can be timed."""
        parts: list[bytes] = []
        async with self._client.stream("POST", path, content=body) as answer:
            async for part in answer.aiter_raw():
                if not parts:
                    self.first_byte_s = time.perf_counter()
                parts.append(part)
            return answer.status_code, b"".join(parts)

    async def close(self) -> None:
        """Ends the client."""
        await self._client.aclose()


async def one_client(
    order: Order, client: int, numbers: Iterator[int], first_byte_seconds: list[float]
) -> None:
    """Asks until there are no more numbers."""
    if order.keys:
        order = replace(order, key=order.keys[client % len(order.keys)])
    await asyncio.sleep(order.ramp_seconds * client / order.clients)
    path = PATHS[order.kind]
    connection: Connection
    connection = HttpxConnection(order) if order.client == "httpx" else RawConnection(order)
    try:
        for number in numbers:
            body = payload(order, number)
            begun_s = time.perf_counter()
            status, answer = await connection.ask(path, body)
            first_byte_seconds.append(connection.first_byte_s - begun_s)
            verify(order, number, status, answer)
    finally:
        await connection.close()


async def carry_out(order: Order) -> dict[str, object]:
    """All requests of an order; seconds of wall and of this process's CPU, and times to first byte."""
    numbers = iter(range(order.first, order.first + order.requests))
    waits: list[float] = []
    EVENTS_AT.clear()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_client(order, it, numbers, waits) for it in range(order.clients)))
    return {
        "seconds": time.perf_counter() - wall_s,
        "cpu_seconds": time.process_time() - cpu_s,
        "first_byte_seconds": waits if order.keep_times else [],
        "events_at": EVENTS_AT,
    }


async def obey() -> None:
    """Reads orders until stdin ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await carry_out(Order(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    uvloop.run(obey())
