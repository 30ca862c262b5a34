"""What a client's answer is read from: a mailbox fed by the tail, or the log itself.

A mailbox is bounded: who falls behind reads on from the log at its own pace, and slows no worker.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from core.errors import InferlogError, Refusal
from core.stream import Key, Visible, is_terminal
from producer_api.mailbox import Mailbox
from producer_api.result_cache import Recording
from producer_api.timings import Timing
from schemas.replies import Accepted, Expired, Started, Tokens

WAIT_SLICE_SECONDS = 1.0
"""So often what is read back from the log is asked for anew, and a clock that has said nothing."""
CLOCK_SECONDS = 5.0
"""The broker's clock is heard anew so often, for when a request has run out of time."""

LateBy = Callable[[str, float | None], float]
"""For how many seconds a request (id, its total deadline if known) has counted as expired if it has
no terminal; negative before that time."""


class ShuttingDown(InferlogError):
    """This replica is going away: the stream can be resumed on any other from its position."""


class ClientGone(InferlogError):
    """The client closed its connection while it waited."""


def result_expired() -> Refusal:
    """410: retention took the answer, or its beginning."""
    return Refusal("result_expired", "This answer, or its beginning, is no longer kept.")


class Source(Protocol):
    """A request as it is read back from the log (`followers.Following`)."""

    @property
    def at_end(self) -> bool: ...
    @property
    def gap(self) -> bool: ...
    async def read(self, max_wait_seconds: float) -> list[Visible]: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...


class Sink(Protocol):
    """Takes tokens at once, for whoever waits in `ReplyStream.next`, or not (`direct.Direct`)."""

    def take(self, events: Sequence[Visible]) -> bool: ...


Follow = Callable[[int], Source]
"""Begins to read a request back; so many of its visible events were delivered before."""


class ReplyStream:
    """The answer of one request from its beginning on; ends with its terminal.

    `position` is the number of tokens (of all choices) delivered so far. Whoever resumes is given the
    beginning as well: what of it is shown again is the renderer's business. `ahead` is what is known
    of the answer already; `recording`, if there is one, gets what is read here.
    """

    __slots__ = (
        *("_abandoned", "_ahead", "_asked_s", "_consumed", "_follow", "_late_by", "_mailbox"),
        *("_on_close", "_on_time_until_s", "_recording", "_shutdown", "_sink", "_source"),
        *("_spoken", "_started", "_total_seconds", "ended", "key", "position", "timing"),
        "__weakref__",
    )

    def __init__(
        self,
        key: Key,
        shutdown: asyncio.Event,
        follow: Follow,
        late_by: LateBy,
        mailbox: Mailbox | None = None,
        *,
        ahead: Sequence[Visible] = (),
        recording: Recording | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.key = key
        self.position = 0
        self.ended = False
        self._shutdown = shutdown
        self._follow = follow
        self._mailbox = mailbox
        self._sink: Sink | None = None
        self._source: Source | None = None
        self._asked_s = 0.0  # the loop's time at which the source was opened
        self._late_by = late_by
        self._on_time_until_s = 0.0  # the loop's time before which it cannot count as expired
        self._consumed = 0  # visible events read from mailbox or log
        self._total_seconds: float | None = None
        self._started = False
        self._on_close = on_close
        self._ahead: list[Visible] = list(ahead)
        self._recording = recording
        self.timing: Timing | None = None
        self._spoken = False
        self._abandoned = False

    def abandon(self) -> None:
        """The client is gone: whoever waits in `next` is told so."""
        self._abandoned = True
        if self._mailbox is not None:
            self._mailbox.wake()
        if self._source is not None:
            self._source.abandon()

    @property
    def request_id(self) -> str:
        """The bare id."""
        return self.key[1]

    async def catch_up(self) -> list[Visible]:
        """All that the log says of the request now; `next` delivers it too.

        Raises Refusal `not_found` if that is nothing, `result_expired` if retention took the
        beginning; LogError if the log cannot be read.
        """
        while not (self._ahead and is_terminal(self._ahead[-1])):
            source = self._source or self._open_source()
            events = await source.read(0.0 if source.at_end else 0.5)
            if source.gap:
                raise result_expired()
            if not events and source.at_end:
                break
            self._ahead += self._note(events)
        if not self._ahead:
            raise Refusal("not_found", f"There is no request {self.request_id}.")
        return list(self._ahead)

    async def next(self, timeout_seconds: float) -> list[Visible]:
        """All events that are there now, else those that come first; [] after the limit.

        At the time when a request without a terminal counts as expired, an `Expired` of our own ends
        the stream. Raises ShuttingDown when this replica goes away, ClientGone after `abandon`,
        LogError if the log cannot be read, Refusal `result_expired` if retention took it meanwhile.
        """
        loop_time = asyncio.get_running_loop().time
        now_s = loop_time()
        until_s = now_s + timeout_seconds
        while not self.ended:
            self._check_client()  # it may have left while what came before was being sent
            over = now_s >= self._on_time_until_s and self._is_over(now_s)
            # over: what is there is all there will be, and many a client waits less than a slice
            wait_s = 0.0 if over or self._shutdown.is_set() else until_s - now_s
            events = self._deliver(await self._fetch(wait_s, now_s))
            self._check_client()
            if events:
                return events
            if self._shutdown.is_set():
                raise ShuttingDown("this replica is shutting down")
            if over:
                return [self._expired()]
            now_s = loop_time()
            if now_s >= until_s:
                return []
        return []

    def hand_over_to(self, sink: Sink) -> None:
        """From now on tokens may go straight to the sink while somebody waits in `next`.

        When it takes them, and nothing but tokens has come: all else, the answer's end above all, and its
        first tokens, `next` gives. Answers that are read back from the log are not handed over.
        """
        self._sink = sink
        if self._mailbox is not None:
            self._mailbox.taker = self

    def hand_over(self, events: list[Visible]) -> bool:
        """For the mailbox, when somebody waits in `next`; False: these must go that way."""
        sink = self._sink
        if sink is None or self._abandoned or not self._spoken:
            return False
        count = 0
        for event in events:
            if type(event) is not Tokens:
                return False
            count += len(event.token_ids)
        if not sink.take(events):
            return False
        self.position += count
        self._note(events)
        return True

    def _check_client(self) -> None:
        if self._abandoned:
            raise ClientGone("the client closed its connection")

    def _is_over(self, now_s: float) -> bool:
        """Whether it counts as expired, and the log was read to an end taken after it did.

        What was read before may lag behind the log: its terminal may lie there unread.
        """
        if self._ahead:
            return False
        late_s = self._late_by(self.request_id, self._total_seconds)
        if late_s < 0:
            # not asked for every token
            self._on_time_until_s = now_s + min(-late_s, CLOCK_SECONDS)
            return False
        if self._source is None or self._asked_s < now_s - late_s:
            if self._mailbox is not None:
                self._mailbox.overflow()
            if self._source is not None:
                self._source.close()
            self._open_source()
        return self._source is not None and self._source.at_end

    async def _fetch(self, wait_seconds: float, now_s: float) -> list[Visible]:
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            return ahead
        box = self._mailbox
        if box is not None and not box.overflowed:
            if events := box.take():
                return self._note(events)
            # whatever else ends the wait wakes it: its client that left, this replica's end
            clock_s = self._on_time_until_s - now_s
            await box.wait(min(wait_seconds, clock_s if clock_s > 0 else WAIT_SLICE_SECONDS))
            return self._note(box.take())
        # from the mailbox to the log, which says again what was delivered: that is passed over
        source = self._source or self._open_source()
        events = await source.read(max(0.0, min(wait_seconds, WAIT_SLICE_SECONDS)))
        if source.gap:
            # nothing more will ever be accepted: its beginning was taken by retention
            raise result_expired()
        return self._note(events)

    def _open_source(self) -> Source:
        self._asked_s = asyncio.get_running_loop().time()
        self._source = self._follow(self._consumed)
        return self._source

    def _note(self, events: list[Visible]) -> list[Visible]:
        self._consumed += len(events)
        if self._recording is not None and events:
            self._recording.add(events)
        return events

    def _deliver(self, events: list[Visible]) -> list[Visible]:
        fresh: list[Visible] = []
        for event in events:
            if type(event) is Tokens:
                if not self._spoken:
                    self._spoken = True
                    if self.timing is not None:
                        self.timing.began()
                self.position += len(event.token_ids)
            elif isinstance(event, Accepted | Started):
                if self._total_seconds != event.info.total_seconds:
                    self._total_seconds = event.info.total_seconds
                    self._on_time_until_s = 0.0
                if isinstance(event, Started):
                    if self._started:
                        continue
                    self._started = True
            else:
                self.ended = True
                if self.timing is not None:
                    self.timing.ended(self.position)
            fresh.append(event)
        return fresh

    def _expired(self) -> Expired:
        """What a request without a terminal has come to: its record can run no more."""
        self.ended = True
        tenant, request_id = self.key
        counts = (self.position,)
        return Expired(id=request_id, tenant=tenant, q="", offset=-1, epoch=-1, counts=counts)

    async def close(self) -> None:
        """Lets go of mailbox, log and recording. Idempotent."""
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox.taker = None  # it leads back here, and the collector runs rarely
        self._sink = None
        if self._on_close is not None:
            self._on_close()
            self._on_close = None
        if self._recording is not None:
            self._recording.close()
            self._recording = None
        if self._source is not None:
            self._source.close()
            self._source = None
