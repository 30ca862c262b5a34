"""Clients that send too much, too slowly or too many at once: closed in time, and nobody waits."""

import asyncio
import contextlib
import dataclasses
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from core.limits import DEFAULT_LIMITS, Limits
from core.stream import Visible
from producer_api.app import make_app
from producer_api.auth import ApiKeys
from producer_api.bounded_http import LINGER_SECONDS, MARGIN_BYTES, PIECE_BYTES, bounded_http
from runtime.metrics import Metrics
from schemas.requests import RequestInfo
from tests.fake_pipeline import KEY, MODEL, FakePipeline, finished, tokens

LIMITS = dataclasses.replace(DEFAULT_LIMITS, receive_seconds=1.0)
HEAD_BYTES_MAX = LIMITS.headers_bytes + MARGIN_BYTES + PIECE_BYTES
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@dataclasses.dataclass
class Serving:
    """A server before a pipeline without a log."""

    port: int
    pipeline: FakePipeline
    metrics: Metrics

    def refused(self, code: str) -> float:
        found = self.metrics.registry.get_sample_value(
            "inferlog_requests_refused_total", {"code": code}
        )
        return found or 0.0


@contextlib.asynccontextmanager
async def serving(
    pipeline: FakePipeline | None = None, limits: Limits = LIMITS
) -> AsyncIterator[Serving]:
    """The application behind the bounded protocol, as the API serves it."""
    pipeline = pipeline or FakePipeline()
    metrics = Metrics()
    app = make_app(pipeline, ApiKeys({KEY: "a"}), limits, metrics)  # type: ignore[arg-type]
    http = bounded_http(limits, metrics)
    server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, http=http, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    task = asyncio.create_task(server.serve([listening]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield Serving(listening.getsockname()[1], pipeline, metrics)
    finally:
        server.should_exit = server.force_exit = True
        await task


async def exchange(
    port: int, *pieces: bytes, pause_seconds: float = 0.0, seconds: float = 8.0
) -> bytes:
    """Sends the pieces as far as they are taken, and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_seconds)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def head_only(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/completions HTTP/1.1", "Host: x", *lines, ""]).encode()


async def test_a_header_line_without_end_is_431_before_it_has_filled_memory() -> None:
    async with serving() as at:
        answer = await exchange(at.port, head_only("X-Long: ") + b"x" * 200_000)
        refused = at.refused("headers_too_large")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"At most 100 headers of 32768 bytes together." in answer
    assert b"x-request-id: " in answer.lower()
    assert refused == 1


async def test_a_request_line_without_end_is_431() -> None:
    async with serving() as at:
        answer = await exchange(at.port, b"GET /" + b"a" * 200_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_ten_thousand_headers_are_431_while_they_arrive() -> None:
    lines = [f"X-{i}: {i}" for i in range(10_000)]
    async with serving() as at:
        answer = await exchange(at.port, head_only(*lines))
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_headers_that_trickle_in_are_431_at_the_first_that_is_too_many() -> None:
    pieces = [head_only(), *[b"X: y\r\n"] * 120]
    async with serving(limits=dataclasses.replace(LIMITS, receive_seconds=60.0)) as at:
        answer = await exchange(at.port, *pieces, pause_seconds=0.001)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_headers_up_to_the_limit_are_taken() -> None:
    value = "x" * (LIMITS.headers_bytes - 1000)
    head = f"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: {value}\r\n\r\n"
    async with serving() as at:
        answer = await exchange(at.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_one_byte_at_a_time_is_408_at_the_limit_and_closed() -> None:
    pieces = [bytes([byte]) for byte in head_only(*["X-Slow: yes"] * 90)]
    async with serving() as at:
        began_s = time.monotonic()
        answer = await exchange(at.port, *pieces, pause_seconds=0.05)
        took_s = time.monotonic() - began_s
        refused = at.refused("request_timeout")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"not received within 1.0 s" in answer
    assert took_s >= 1.0
    assert refused == 1


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving() as at:
        assert await exchange(at.port) == b""


async def test_line_ends_between_two_requests_do_not_keep_a_connection() -> None:
    async with serving() as at:
        answer = await exchange(at.port, LIVE, *[b"\r\n"] * 100, pause_seconds=0.05)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


async def test_a_body_that_nobody_waits_for_does_not_keep_a_connection() -> None:
    """Without a key the answer is 401 at once; the body drips on."""
    head = head_only("Content-Type: application/json", "Content-Length: 1000000") + b"\r\n"
    async with serving() as at:
        answer = await exchange(at.port, head, *[b"x"] * 200, pause_seconds=0.05)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_what_is_no_http_is_told_in_the_form_of_every_error() -> None:
    async with serving() as at:
        answer = await exchange(at.port, b"what is this\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_request"' in answer


async def test_pipelined_requests_are_answered_in_order_up_to_the_limit_then_the_end() -> None:
    most = LIMITS.pipelined_requests
    async with serving() as at:
        few = await exchange(
            at.port, LIVE * 3 + LIVE.replace(b"Host", b"Connection: close\r\nHost")
        )
        many = await exchange(at.port, LIVE * 5000)
    assert few.count(b"HTTP/1.1 200 ") == 4
    # one is answered while the rest wait; a few more where answers came between two pieces
    assert 1 + most <= many.count(b"HTTP/1.1 200 ") <= 3 * (1 + most)
    assert b"connection: close" in many


async def test_a_giant_head_behind_a_stream_does_not_write_into_it() -> None:
    slow = FakePipeline(
        batches=[[tokens(1, text="a")], [], [tokens(1, text="b", seq=1, end=True), finished(2)]],
        info=RequestInfo(endpoint="/v1/completions", model=MODEL, tier="standard", stream=True),
    )
    body = b'{"model": "scripted", "prompt": "x", "stream": true}'
    first = head_only(
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    async with serving(slow) as at:
        answer = await exchange(at.port, first + b"\r\n" + body + head_only("X: ") + b"x" * 90_000)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"[DONE]" in answer


@contextlib.contextmanager
def slow_sockets(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Silent ones, ones with half a head, and ones with half a body."""
    half_body = f"Authorization: Bearer {KEY}", "Content-Length: 100", "Content-Type: text/plain"
    begun = [b"", b"GET /v1/mod", head_only(), head_only(*half_body) + b"\r\n{"]
    with contextlib.ExitStack() as stack:
        found = []
        for index in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5.0))
            client.sendall(begun[index % len(begun)])
            client.setblocking(False)
            found.append(client)
        yield found


async def closed(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    loop = asyncio.get_running_loop()
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await loop.sock_recv(client, 65_536):
            answer += piece
    return answer


async def test_500_slow_sockets_are_all_closed_and_others_are_answered_meanwhile() -> None:
    async with serving(limits=dataclasses.replace(LIMITS, receive_seconds=2.0)) as at:
        with slow_sockets(at.port, 500) as clients:
            gathered = asyncio.gather(*(closed(client) for client in clients))
            answered = 0
            headers = {"Authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(headers=headers, timeout=10.0) as http:
                while not gathered.done():
                    url = f"http://127.0.0.1:{at.port}/v1/models"
                    assert (await http.get(url)).status_code == 200
                    answered += 1
                    await asyncio.sleep(0.05)
            answers = await asyncio.wait_for(gathered, 2.0 + LINGER_SECONDS + 5.0)
    assert answered > 3
    statuses = [answer.partition(b"\r\n")[0] for answer in answers]
    assert statuses.count(b"") == 125
    assert statuses.count(b"HTTP/1.1 408 Request Timeout") == 375


async def test_a_connection_holds_no_more_of_a_head_than_its_bound() -> None:
    count = 40
    most = max(HEAD_BYTES_MAX, 256 * 1024)  # what asyncio itself reads at once is larger
    piece = b"x" * 60_000
    async with serving(limits=dataclasses.replace(LIMITS, receive_seconds=60.0)) as at:

        def flood() -> int:
            """Two megabytes of one header, as far as they are taken; bytes that were."""
            with socket.create_connection(("127.0.0.1", at.port), 5.0) as client:
                client.sendall(head_only("X-Long: "))
                taken = 0
                with contextlib.suppress(OSError):
                    for _ in range(35):
                        client.sendall(piece)
                        taken += len(piece)
                return taken

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(count) as clients:
            tracemalloc.start()
            try:
                await asyncio.gather(*(loop.run_in_executor(clients, flood) for _ in range(count)))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert peak < count * most


@pytest.mark.parametrize("held", [0, LIMITS.headers_bytes - 500])
async def test_a_head_in_two_pieces_is_one(held: int) -> None:
    head = head_only(f"Authorization: Bearer {KEY}", f"X: {'x' * held}", "Connection: close")
    head = head.replace(b"POST /v1/completions", b"GET /v1/models")
    async with serving() as at:
        answer = await exchange(at.port, head[:30], head[30:] + b"\r\n", pause_seconds=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ")


CHUNKED = (
    f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode()
BODY = b'{"model": "%s", "prompt": "Hello"}' % MODEL.encode()
IN_ONE_CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("key", [KEY, "key-of-nobody"])
async def test_a_trailer_without_end_is_cut_off_before_it_has_filled_memory(key: str) -> None:
    """The parser keeps all of it, and copies it for each piece: one client would stop a replica."""
    head = CHUNKED.replace(KEY.encode(), key.encode()) + b"0\r\nX-Long: "
    async with serving() as at:
        await exchange(at.port, LIVE.replace(b"Host: x", b"Connection: close"))
        tracemalloc.start()
        try:
            with contextlib.suppress(ConnectionResetError):
                await exchange(at.port, head, *[b"x" * 65536] * 64)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 2_000_000


async def test_a_trailer_is_no_header() -> None:
    """Else it could bring the key, or whatever a proxy in front had taken out of the head."""
    keyless = CHUNKED.replace(f"Authorization: Bearer {KEY}\r\n".encode(), b"")
    trailer = b"0\r\nAuthorization: Bearer %s\r\n\r\n" % KEY.encode()
    async with serving() as at:
        answer = await exchange(at.port, keyless + IN_ONE_CHUNK + trailer)
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_a_client_that_offers_http_2_is_answered_in_http_1(pieces: int, framing: str) -> None:
    """As Java's and curl's do, with the body in the same breath or behind it."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = CHUNKED.replace(b"Host: x\r\n", b"Host: x\r\n" + offer.encode())
    body = IN_ONE_CHUNK + b"0\r\n\r\n"
    if framing == "content-length":
        length = b"Content-Length: %d" % len(BODY)
        head, body = head.replace(b"Transfer-Encoding: chunked", length), BODY
    cut = {1: [head + body], 2: [head, body], 3: [head[:50], head[50:] + body[:9], body[9:]]}
    answering = FakePipeline([[tokens(1, text="Hi", end=True), finished(1)]])
    async with serving(answering) as at:
        answer = await exchange(at.port, *cut[pieces], pause_seconds=0.1)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200")


async def test_the_body_of_an_upgrade_is_not_the_next_request() -> None:
    """A proxy that hands both on would give its answer to somebody else."""
    hidden = (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % KEY.encode()
    )
    head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(hidden))
    head = head.replace(b"Host: x\r\n", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")
    async with serving() as at:
        answer = await exchange(at.port, head, hidden, pause_seconds=0.1)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400")


def much(pieces: int) -> FakePipeline:
    """An answer of 8 MiB, more than any kernel takes for a client."""
    events: list[list[Visible]] = [
        [tokens(1, text="x" * (8 * MIB // pieces), seq=seq)] for seq in range(pieces)
    ]
    return FakePipeline([*events, [tokens(0, seq=pieces, end=True), finished(pieces)]])


MIB = 1024 * 1024


@contextlib.contextmanager
def asked(port: int, *, stream: bool) -> Iterator[socket.socket]:
    """A client with a small window that has sent a request and has read nothing yet."""
    body = b'{"model": "scripted", "prompt": "x", "stream": %s}' % (b"true" if stream else b"false")
    head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head + body)
        yield client


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_takes_nothing_is_let_go(stream: bool) -> None:
    """Streams beyond number could be held open so, long past every deadline, and what is sent to them."""
    async with serving(much(64), dataclasses.replace(LIMITS, stalled_seconds=0.5)) as at:
        with asked(at.port, stream=stream):
            async with asyncio.timeout(8):
                while not at.metrics.registry.get_sample_value(
                    "inferlog_connections_stalled_total"
                ):
                    await asyncio.sleep(0.05)
                while at.metrics.registry.get_sample_value("inferlog_open_requests"):
                    await asyncio.sleep(0.05)


async def test_a_client_that_takes_little_is_waited_for() -> None:
    async with serving(much(64), dataclasses.replace(LIMITS, stalled_seconds=0.5)) as at:
        with asked(at.port, stream=True) as client:
            for _ in range(30):
                await asyncio.sleep(0.1)
                assert await asyncio.to_thread(client.recv, 2048)
        assert not at.metrics.registry.get_sample_value("inferlog_connections_stalled_total")
