"""A connection that aiokafka opened and a tail reads from: answers in any pieces, and every way to lose it."""

import asyncio
import struct
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from aiokafka.client import ConnectionGroup
from aiokafka.conn import create_conn
from aiokafka.errors import (
    CorrelationIdError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    NodeNotReadyError,
    RequestTimedOutError,
)
from aiokafka.protocol.fetch import FetchResponse_v4

from topics.kafka.connecting import connection_closed
from topics.kafka.fetch_connection import ANSWER_BYTES_MAX, FetchConnection
from topics.kafka.fetch_protocol import Fetched, FetchRequest
from topics.kafka.tail_client import TailClient
from topics.ports import Partition

API_VERSIONS = 18
HERE = Partition("replies", 3)
REQUEST = FetchRequest({HERE: 7}, wait_ms=10, partition_bytes=100)
FOUND = [Fetched(HERE, 0, b"data" * 1000)]
BODY = FetchResponse_v4(0, [("replies", [(3, 0, 10, 10, [], b"data" * 1000)])]).encode()


def framed(number: int, body: bytes) -> bytes:
    return struct.pack(">ii", 4 + len(body), number) + body


class Broker:
    """Says which versions it speaks; a fetch is answered with what `answer` makes of its number."""

    def __init__(self) -> None:
        self.versions = [(1, 4, 17)]
        self.answer: Callable[[int], list[bytes]] = lambda number: [framed(number, BODY)]
        self.asked: list[bytes] = []
        self.writer: Any = None
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            while True:
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                frame = await reader.readexactly(length)
                api, _, number = struct.unpack_from(">hhi", frame)
                pieces = [framed(number, self._versions())]
                if api != API_VERSIONS:
                    self.asked.append(frame)
                    pieces = self.answer(number)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            await asyncio.wait({asyncio.ensure_future(writer.wait_closed())}, timeout=1)
            self.ended.set()

    def _versions(self) -> bytes:
        return struct.pack(">hi", 0, len(self.versions)) + b"".join(
            struct.pack(">hhh", *it) for it in self.versions
        )


class Place:
    """A broker and a connection to it."""

    def __init__(self, broker: Broker, conn: Any) -> None:
        self.broker = broker
        self.conn = conn
        self.connection = FetchConnection(conn, 0.3)

    async def fetch(self) -> list[Fetched] | Exception:
        """What is told; a second time would be an InvalidStateError that fails the test."""
        told: asyncio.Future[list[Fetched] | Exception] = asyncio.get_running_loop().create_future()
        self.connection.fetch(REQUEST, told.set_result)
        assert not told.done()
        async with asyncio.timeout(5):
            return await told


Test = Callable[[Place], Coroutine[Any, Any, None]]
Run = Callable[[Coroutine[Any, Any, None]], None]


def on_both_loops(test: Test) -> Callable[[Run], None]:
    """With a broker and a connection; what a loop's exception handler is told fails it."""

    async def whole() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: complaints.append(it))
        broker = Broker()
        server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
        conn = await create_conn(
            *server.sockets[0].getsockname()[:2],
            max_idle_ms=200,
            on_close=lambda conn, reason: connection_closed(lambda *_: None, conn, reason),
        )
        try:
            await test(Place(broker, conn))
        finally:
            closed = conn.close()
            async with asyncio.timeout(5):  # or ending a client would hang
                await closed
                await broker.ended.wait()
            server.close()
        assert complaints == []

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    def on_loop(run: Run) -> None:
        run(whole())

    on_loop.__doc__ = test.__doc__
    return on_loop


@on_both_loops
async def test_each_question_is_told_its_answer(place: Place) -> None:
    for _ in range(3):
        assert await place.fetch() == FOUND
    number, name = struct.unpack_from(">i", place.broker.asked[2], 4)[0], b"aiokafka"
    assert REQUEST.encode(number, name.decode())[4:] == place.broker.asked[2]


@on_both_loops
async def test_an_answer_comes_in_any_pieces(place: Place) -> None:
    def in_pieces(number: int) -> list[bytes]:
        whole = framed(number, BODY)
        cuts = [0, 1, 3, 4, 7, 9, 100, len(whole) - 1, len(whole)]
        return [whole[a:b] for a, b in pairwise(cuts)]

    place.broker.answer = in_pieces
    for _ in range(2):
        assert await place.fetch() == FOUND


@on_both_loops
async def test_a_broker_that_says_nothing_is_given_up_after_its_time(place: Place) -> None:
    """Counted from the question, not from when the timer was set for an earlier one."""
    assert await place.fetch() == FOUND
    await asyncio.sleep(0.2)
    place.broker.answer = lambda _: []
    began_s = asyncio.get_running_loop().time()
    assert isinstance(await place.fetch(), RequestTimedOutError)
    assert asyncio.get_running_loop().time() - began_s > 0.28
    assert place.connection.lost
    assert not place.conn.connected()


@on_both_loops
async def test_a_quiet_connection_is_kept(place: Place) -> None:
    """aiokafka closes what has not spoken to it for `max_idle_ms`."""
    await asyncio.sleep(0.5)
    assert await place.fetch() == FOUND


@on_both_loops
async def test_a_broker_that_goes_away_in_mid_answer_is_told_once(place: Place) -> None:
    def half(number: int) -> list[bytes]:
        asyncio.get_running_loop().call_later(0.05, place.broker.writer.close)
        return [framed(number, BODY)[:50]]

    place.broker.answer = half
    assert isinstance(await place.fetch(), KafkaConnectionError)
    assert place.connection.lost
    await asyncio.sleep(0.01)
    assert not place.conn.connected()


@on_both_loops
async def test_a_connection_that_is_closed_under_a_question_tells_so(place: Place) -> None:
    place.broker.answer = lambda _: []
    asyncio.get_running_loop().call_later(0.05, place.conn.close)
    assert isinstance(await place.fetch(), KafkaConnectionError)


@on_both_loops
async def test_what_was_not_asked_for_ends_the_connection(place: Place) -> None:
    place.broker.answer = lambda number: [framed(number + 1, BODY)]
    assert isinstance(await place.fetch(), CorrelationIdError)
    assert place.connection.lost


@on_both_loops
async def test_no_length_is_believed_that_nobody_would_send(place: Place) -> None:
    place.broker.answer = lambda number: [struct.pack(">ii", ANSWER_BYTES_MAX + 1, number)]
    assert isinstance(await place.fetch(), CorrelationIdError)


@on_both_loops
async def test_an_answer_that_cannot_be_read_is_an_error(place: Place) -> None:
    place.broker.answer = lambda number: [framed(number, BODY[:12])]
    assert isinstance(await place.fetch(), KafkaConnectionError)
    assert place.connection.lost


@on_both_loops
async def test_words_that_nobody_asked_for_end_the_connection(place: Place) -> None:
    assert await place.fetch() == FOUND
    place.broker.writer.write(framed(9, BODY))
    async with asyncio.timeout(5):
        while not place.connection.lost:
            await asyncio.sleep(0.01)


async def told_of(client: TailClient) -> list[Fetched] | Exception:
    told: asyncio.Future[list[Fetched] | Exception] = asyncio.get_running_loop().create_future()
    client.fetch(0, REQUEST, told.set_result)
    async with asyncio.timeout(1):
        return await told


@on_both_loops
async def test_a_connection_that_was_lost_before_it_was_given_away_is_told_at_once(
    place: Place,
) -> None:
    """Its end is told to who had it before: the new one would wait for all of its time."""
    client = TailClient([], request_timeout_ms=10_000, bootstrap_servers="127.0.0.1:1")

    async def lost_in_this_turn(*_: Any, **__: Any) -> Any:
        place.conn._writer.transport.abort()
        return place.conn

    client.client._get_conn = lost_in_this_turn
    assert isinstance(await told_of(client), NodeNotReadyError)
    assert not place.conn.connected()
    await client.stop()


@on_both_loops
async def test_the_connection_that_told_the_leaders_is_used_unless_it_is_in_use(
    place: Place,
) -> None:
    client = TailClient([], request_timeout_ms=10_000, bootstrap_servers="127.0.0.1:1")
    conns = client.client._conns
    conns[0, ConnectionGroup.DEFAULT] = place.conn
    place.conn._requests.append(object())
    assert isinstance(await told_of(client), NodeNotReadyError)  # and no other can be had
    place.conn._requests.clear()
    assert await told_of(client) == FOUND
    assert list(conns) == [(0, ConnectionGroup.COORDINATION)]
    assert await told_of(client) == FOUND
    await client.stop()


def test_a_broker_that_does_not_speak_it_is_no_place_to_fetch_from() -> None:
    class Conn:
        _versions = {1: (5, 17)}  # noqa: RUF012

    with pytest.raises(IncompatibleBrokerVersion):
        FetchConnection(Conn(), 1.0)
