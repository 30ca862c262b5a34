"""What a client's answer is read from: a mailbox fed by the tail, or the log itself.

A mailbox is bounded: who falls behind reads on from the log at its own pace, and slows no worker.
"""

import asyncio
from collections.abc import Callable

from core.errors import InferlogError, Refusal
from core.stream import Key, Reader, Visible, held_bytes
from producer_api.scan_places import Place
from schemas.codec import UndecodableRecord, decode_reply
from schemas.ids import parse_request_id
from schemas.replies import Accepted, Expired, Started, Tokens
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError, Partition, Tail
from topics.scan import REPLIES, late_reader

WAIT_SLICE_SECONDS = 1.0

IsExpired = Callable[[str, float | None], bool]
"""Whether a request (id, its total deadline if known) counts as expired without a terminal."""


class ShuttingDown(InferlogError):
    """This replica is going away: the stream can be resumed on any other from its position."""


class ClientGone(InferlogError):
    """The client closed its connection while it waited."""


def result_expired() -> Refusal:
    """410: retention took the answer, or its beginning."""
    return Refusal("result_expired", "This answer, or its beginning, is no longer kept.")


class Mailbox:
    """Events of one request as the tail accepts them."""

    def __init__(self, key: Key, events_max: int, bytes_max: int) -> None:
        self.key = key
        self.overflowed = False
        self._waiter: asyncio.Future[None] | None = None
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Visible] = []
        self._bytes = 0

    def put(self, event: Visible) -> bool:
        """Takes an event; False once the bound is passed: then the mailbox is of no more use."""
        if not self.overflowed:
            self._events.append(event)
            self._bytes += 64 + (held_bytes(event) if isinstance(event, Tokens) else 0)
            if len(self._events) > self._events_max or self._bytes > self._bytes_max:
                self.overflow()
        return not self.overflowed

    def overflow(self) -> None:
        """Gives up: whoever reads goes on from the log."""
        self.overflowed = True
        self._events.clear()
        self.wake()

    def wake(self) -> None:
        """Called once per batch of the tail, after its puts."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, max_wait_seconds: float) -> None:
        """Returns when woken, or after the wait. A future and a timer: no task per wait."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(max_wait_seconds, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def take(self) -> list[Visible]:
        """All that has arrived."""
        events, self._events = self._events, []
        self._bytes = 0
        return events


class Follower:
    """Reads one request from its id's time on, through a reader that starts late."""

    def __init__(self, log: Log, fence_tail: FenceTail, key: Key, skew_ms: int) -> None:
        parts = parse_request_id(key[1])
        self._log = log
        self._fence_tail = fence_tail
        self._key = key
        self._since_ms = max(0, parts.time_ms - skew_ms)
        self._partition = Partition(REPLIES, parts.reply_partition)
        self._reader: Reader | None = None
        self._tail: Tail | None = None
        self.end = 0
        self.gap = False

    async def open(self) -> None:
        """Finds where to begin. Raises LogError."""
        here = self._partition
        position = (await self._log.offsets_at({here: self._since_ms}))[here]
        wanted = self._key.__eq__
        begin = await late_reader(self._log, self._fence_tail, here.index, position, wanted)
        self.end = (await self._log.end_offsets([here]))[here]
        self._reader = begin.reader
        self._tail = await self._log.tail({here: begin.position})

    @property
    def at_end(self) -> bool:
        """True once everything up to the end taken at `open` was read."""
        return self._tail is not None and self._tail.position(self._partition) >= self.end

    async def read(self, max_wait_seconds: float) -> list[Visible]:
        """The next visible events of the request. Raises LogError."""
        assert self._tail is not None
        assert self._reader is not None
        visible: list[Visible] = []
        for record in await self._tail.read(max_wait_seconds=max_wait_seconds):
            try:
                visible += self._reader.feed(decode_reply(record.value))
            except UndecodableRecord:
                continue  # it binds nothing; the tail has logged it
        state = self._reader.states.get(self._key)
        self.gap = state is not None and state.gap and not state.total()
        return visible

    async def close(self) -> None:
        """Ends the client."""
        if self._tail is not None:
            await self._tail.close()
            self._tail = None


class ReplyStream:
    """The answer of one request from a position on; ends with its terminal.

    `position` is the number of tokens (of all choices) delivered so far. Positions that clients hold
    are ends of log events, or of merges of them, so going on from one never splits an event. An event
    without tokens (the end of a choice) lies at the position of the token before it, and is told
    again to whoever goes on from there.
    """

    def __init__(
        self,
        key: Key,
        shutdown: asyncio.Event,
        make_follower: Callable[[], Follower],
        place: Place,
        is_expired: IsExpired,
        mailbox: Mailbox | None = None,
        after: int = 0,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.key = key
        self.position = after
        self.ended = False
        self._shutdown = shutdown
        self._make_follower = make_follower
        self._place = place
        self._mailbox = mailbox
        self._follower: Follower | None = None
        self._is_expired = is_expired
        self._after = after
        self._seen = 0  # tokens read, delivered or not
        self._consumed = 0  # events read, delivered or not
        self._skip = 0  # events still to be passed over
        self._total_seconds: float | None = None
        self._started = self._abandoned = False
        self._on_close = on_close
        self._ahead: list[Visible] = []
        self.on_delivered: Callable[[list[Visible]], None] | None = None

    def abandon(self) -> None:
        """The client is gone: whoever waits in `next` is told so."""
        self._abandoned = True
        if self._mailbox is not None:
            self._mailbox.wake()

    @property
    def request_id(self) -> str:
        """The bare id."""
        return self.key[1]

    async def find(self) -> None:
        """Makes sure that the request exists, by the log up to now. Raises Refusal `not_found`."""
        follower = await self._open_follower()
        while not self._ahead:
            self._ahead = await follower.read(0.2)
            if follower.gap:
                raise result_expired()
            if not self._ahead and follower.at_end:
                raise Refusal("not_found", f"There is no request {self.request_id}.")

    async def next(self, timeout_seconds: float) -> list[Visible]:
        """All events that are there now, else those that come first; [] after the limit.

        At the time when a request without a terminal counts as expired, an `Expired` of our own ends
        the stream. Raises ShuttingDown when this replica goes away, ClientGone after `abandon`,
        LogError if the log cannot be read, Refusal `result_expired` if retention took it meanwhile.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_seconds
        while not self.ended:
            if events := self._deliver(await self._fetch(until_s - loop.time())):
                return events
            if self._abandoned:
                raise ClientGone("the client closed its connection")
            if self._shutdown.is_set():
                raise ShuttingDown("this replica is shutting down")
            if self._is_expired(self.request_id, self._total_seconds):
                return [self._expired()]
            if loop.time() >= until_s:
                return []
        return []

    async def _fetch(self, wait_seconds: float) -> list[Visible]:
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            return ahead
        wait_seconds = max(0.0, min(wait_seconds, WAIT_SLICE_SECONDS))
        box = self._mailbox
        if box is not None and not box.overflowed:
            if events := box.take():
                return events
            await box.wait(wait_seconds)
            return box.take()
        if self._follower is not None and self._follower.at_end:
            return await self._read_log(self._follower, wait_seconds)
        # taken anew for each read: a client that takes its time holds no place meanwhile
        async with self._place(wait_seconds) as free:
            if not free:
                return []
            follower = self._follower or await self._open_follower()
            return await self._read_log(follower, wait_seconds)

    async def _read_log(self, follower: Follower, wait_seconds: float) -> list[Visible]:
        events = await follower.read(min(wait_seconds, 0.5))
        if follower.gap:
            # nothing more will ever be accepted: its beginning was taken by retention
            raise result_expired()
        return events

    async def _open_follower(self) -> Follower:
        follower = self._make_follower()
        try:
            await follower.open()
        except LogError as error:
            await follower.close()
            reason = "The log cannot be read right now."
            raise Refusal("unavailable", reason, retry_after_seconds=2) from error
        self._follower = follower
        self._skip = self._consumed  # the log says again what was delivered
        return follower

    def _deliver(self, events: list[Visible]) -> list[Visible]:
        if self._skip:
            passed = min(self._skip, len(events))
            self._skip -= passed
            events = events[passed:]
        self._consumed += len(events)
        fresh: list[Visible] = []
        for event in events:
            if isinstance(event, Tokens):
                self._seen += len(event.token_ids)
                self.position = max(self.position, self._seen)
                if self._seen < self._after or (self._seen == self._after and event.token_ids):
                    continue
            elif isinstance(event, Accepted | Started):
                self._total_seconds = event.info.total_seconds
                if isinstance(event, Started):
                    if self._started:
                        continue
                    self._started = True
            else:
                self.ended = True
            fresh.append(event)
        if self.on_delivered is not None:
            self.on_delivered(fresh)
        return fresh

    def _expired(self) -> Expired:
        """What a request without a terminal has come to: its record can run no more."""
        self.ended = True
        tenant, request_id = self.key
        counts = (self._seen,)
        return Expired(id=request_id, tenant=tenant, q="", offset=-1, epoch=-1, counts=counts)

    async def close(self) -> None:
        """Lets go of mailbox and follower. Idempotent."""
        if self._on_close is not None:
            self._on_close()
            self._on_close = None
        if self._follower is not None:
            await self._follower.close()
            self._follower = None
