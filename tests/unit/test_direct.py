"""Tokens that go from the tail's turn straight to the socket: what may, in which order, and what if it fails."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from core.stream import Visible
from producer_api.direct import Pieces
from producer_api.mailbox import Mailbox
from producer_api.streams import ClientGone, ReplyStream
from schemas.replies import Started
from schemas.requests import CHAT, RequestInfo
from tests.fake_pipeline import REQUEST_ID, finished, tokens
from tests.unit.test_result_cache import Place

KEY = ("a", REQUEST_ID)


class Sink:
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.is_ready = True
        self.failure: Exception | None = None
        self.taken: list[Visible] = []

    def take(self, events: Sequence[Visible]) -> bool:
        if self.failure is not None:
            raise self.failure
        if self.is_ready:
            self.taken += events
        return self.is_ready


class Way:
    """A stream with a mailbox and a sink; its first tokens were given by `next`."""

    def __init__(self) -> None:
        self.box = Mailbox(KEY, 10, 100_000)
        self.sink = Sink()
        self.cache = Place().cache(answers=100)
        self.stream = ReplyStream(
            KEY,
            asyncio.Event(),
            lambda _: pytest.fail("the log is not read"),
            lambda *_: -60.0,
            self.box,
            recording=self.cache.record(KEY),
        )
        self.stream.hand_over_to(self.sink)

    async def begin(self) -> "asyncio.Task[list[Visible]]":
        self.come(tokens(1, text="first"))
        assert await self.stream.next(1.0) == [tokens(1, text="first")]
        return await self.wait()

    async def wait(self) -> "asyncio.Task[list[Visible]]":
        waiting = asyncio.create_task(self.stream.next(30.0))
        await asyncio.sleep(0)
        return waiting

    def come(self, *events: Visible) -> None:
        """As the tail does it."""
        for event in events:
            self.box.put(event)
        self.box.wake()


async def test_tokens_pass_whoever_waits_and_the_end_wakes_him() -> None:
    way = Way()
    waiting = await way.begin()
    pieces = [tokens(2, text=f"{seq} ", seq=seq) for seq in (1, 3, 5)]
    way.come(pieces[0])
    way.come(*pieces[1:])
    assert way.sink.taken == pieces
    assert way.stream.position == 7
    await asyncio.sleep(0)
    assert not waiting.done()
    end: list[Visible] = [tokens(1, seq=7, end=True), finished(8)]
    way.come(*end)
    assert await waiting == end
    assert way.sink.taken == pieces
    # and the answer that is kept is whole
    assert await way.cache.get(KEY) == [tokens(1, text="first"), *pieces, *end]
    await way.stream.close()


async def test_the_first_tokens_are_given_to_whoever_waits() -> None:
    way = Way()
    waiting = await way.wait()
    way.come(tokens(1))
    assert await waiting == [tokens(1)]
    assert way.sink.taken == []
    await way.stream.close()


async def test_what_comes_while_nobody_waits_is_given_by_next_before_what_follows() -> None:
    way = Way()
    (await way.begin()).cancel()
    await asyncio.sleep(0)
    way.come(tokens(1, seq=1))
    assert way.sink.taken == []
    assert await way.stream.next(1.0) == [tokens(1, seq=1)]
    waiting = await way.wait()
    way.come(tokens(1, seq=2))
    assert way.sink.taken == [tokens(1, seq=2)]
    waiting.cancel()
    await way.stream.close()


async def test_a_client_that_takes_nothing_more_gets_what_comes_through_its_task() -> None:
    way = Way()
    waiting = await way.begin()
    way.sink.is_ready = False
    way.come(tokens(1, seq=1))
    assert await waiting == [tokens(1, seq=1)]
    for seq in range(2, 20):
        way.come(tokens(1, seq=seq))
    assert way.box.overflowed  # its bound holds as ever
    assert way.sink.taken == []
    await way.stream.close()


async def test_whatever_else_is_among_the_tokens_goes_through_the_task() -> None:
    way = Way()
    waiting = await way.begin()
    info = RequestInfo(endpoint=CHAT, model="m", tier="standard")
    again = Started(
        id=REQUEST_ID,
        tenant="a",
        q="q/0",
        offset=7,
        epoch=2,
        starts=2,
        counts=(1,),
        info=info,
        worker="w",
    )
    way.come(again, tokens(1, seq=1))
    assert await waiting == [again, tokens(1, seq=1)]
    assert way.sink.taken == []
    await way.stream.close()


async def test_a_client_that_has_left_ends_the_wait() -> None:
    way = Way()
    waiting = await way.begin()
    way.stream.abandon()
    way.come(tokens(1, seq=1))
    with pytest.raises(ClientGone):
        await waiting
    assert way.sink.taken == []
    await way.stream.close()


async def test_a_failure_is_the_streams_own() -> None:
    way = Way()
    waiting = await way.begin()
    way.sink.failure = ValueError("as if rendering had a bug")
    way.come(tokens(1, seq=1))  # raises nothing: the tail serves others, too
    with pytest.raises(ValueError, match="rendering"):
        await waiting
    await way.stream.close()


async def test_the_task_still_looks_at_the_clock() -> None:
    """For heartbeats, deadlines and the replica's end."""
    way = Way()
    (await way.begin()).cancel()
    waiting = asyncio.create_task(way.stream.next(0.2))
    for seq in range(1, 5):
        await asyncio.sleep(0.03)
        way.come(tokens(1, seq=seq))
    assert await asyncio.wait_for(waiting, 5) == []
    assert len(way.sink.taken) == 4
    await way.stream.close()


class Connection:
    """A transport and its flow control."""

    def __init__(self) -> None:
        self.closing = False
        self.written = b""

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written += data


def test_a_piece_is_one_chunk_and_nothing_is_written_to_who_cannot_take_it() -> None:
    here = Connection()
    pieces = Pieces(here)  # type: ignore[arg-type]  # the part of a transport that is used
    assert pieces.ready()
    pieces.write(b"x" * 300)
    assert here.written == b"12c\r\n" + b"x" * 300 + b"\r\n"
    pieces.paused = True
    assert not pieces.ready()
    pieces.paused, here.closing = False, True
    assert not pieces.ready()


async def test_a_stream_that_was_closed_is_freed_at_once() -> None:
    """The collector of cycles runs rarely (`runtime/garbage.py`)."""
    gc.disable()
    try:
        way = Way()
        (await way.begin()).cancel()
        await way.stream.close()
        left = weakref.ref(way.stream)
        del way
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()
