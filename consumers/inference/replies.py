"""The worker's mouth: events to `replies`, one record per turn of the loop and reply partition, or few.

There is no timer: whatever the engine and the scheduler said within one turn of the event loop
travels together. A publish that failed, or whose outcome is unknown, is never repeated: the epoch
ends, and the log is asked what it holds.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.offsets import Handle
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.replies import AnyEvent, Events, Fence
from topics.ports import (
    Appended,
    Appender,
    AppendFailed,
    AppendUnknown,
    Log,
    LogError,
    Partition,
    RecordTooLarge,
)
from topics.scan import REPLIES

EVENTS_MAX = 128
"""A record holds no more events, nor bytes, because who reads it works through it in one turn of its loop."""
EVENTS_BYTES_MAX = 768 * 1024
ENDS_SECONDS = 3.0
"""So often a worker asks where the reply partitions end, with all that others have said."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Speech:
    """The events of one request that are under way; `on_silent` is called when all are acked."""

    open: int = 0
    on_silent: list[Callable[[], None]] = field(default_factory=list)
    on_too_large: Callable[[], None] | None = None

    def when_silent(self, call: Callable[[], None]) -> None:
        """Calls at once if nothing is under way, else after the last ack."""
        if self.open:
            self.on_silent.append(call)
        else:
            call()

    def acknowledged(self) -> None:
        """One record with an event of this request was acknowledged."""
        self.open -= 1
        if not self.open and self.on_silent:
            calls, self.on_silent = self.on_silent, []
            for call in calls:
                call()


Said = tuple[Speech, AnyEvent]


class ReplyWriter:
    """One appender for all events and fences of this worker.

    `reached[p]` is how far reply partition p has come, as acks and its ends told us: what is begun from
    now on lies there or behind. On a failure `on_failure` is called once; nothing is sent any more until
    `reopen`. `silenced` is asked before anything leaves: which request partitions may not be spoken for
    any more.
    """

    def __init__(self, log: Log, on_failure: Callable[[], None], metrics: Metrics) -> None:
        self.reached: dict[int, int] = {}
        self.silenced: Callable[[], frozenset[str]] = frozenset
        self.failures_count = 0
        self._log = log
        self._on_failure = on_failure
        self._appender: Appender | None = None
        self._buffers: dict[int, list[Said]] = {}
        self._flush_due = False
        self._under_way: set[asyncio.Future[Appended]] = set()
        self._publish_failures = metrics.publish_failures
        self._observe_publish = metrics.publish.labels(REPLIES).observe

    @property
    def broken(self) -> bool:
        """True from a failure until `reopen`."""
        return self._appender is None

    async def reopen(self) -> None:
        """Makes a new appender. Raises LogError while the log is away."""
        if self._appender is None:
            self._buffers.clear()
            self._appender = await self._log.appender()

    def begin(self, handle: Handle, partition: int) -> None:
        """Before an offset's first event, also an end without a start: successors fold from here."""
        if handle.spoken_at is None:
            handle.spoken_at = (partition, self.reached.get(partition, 0))

    def learn(self, partition: int, position: int) -> None:
        """The reply partition has come so far."""
        self.reached[partition] = max(position, self.reached.get(partition, 0))

    async def follow_ends(self) -> None:
        """Asks for the ends now and then, for ever.

        A worker that was silent, or seldom speaks on a partition, would else have its successor read all that
        others have said since. What is under way lies before the end, and has its own mark (`begin`).
        """
        while True:
            await asyncio.sleep(ENDS_SECONDS)
            here = [Partition(REPLIES, index) for index in self.reached]
            try:
                ends = await self._log.end_offsets(here) if here else {}
            except LogError:
                continue  # a successor reads more, that is all
            for partition, end in ends.items():
                self.learn(partition.index, end)

    def say(self, partition: int, speech: Speech, event: AnyEvent) -> None:
        """Hands an event over; it leaves at the end of this turn of the loop."""
        if self._appender is None:
            return  # the epoch has ended; the log alone says what was heard
        speech.open += 1
        self._buffers.setdefault(partition, []).append((speech, event))
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        # a process that was stopped for long goes on right here: a timer of its own would be too late
        silenced = self.silenced()
        buffers, self._buffers = self._buffers, {}
        for partition, said in buffers.items():
            if silenced:
                said = [it for it in said if it[1].q not in silenced]  # noqa: PLW2901  rarely
            for start in range(0, len(said), EVENTS_MAX):
                self._send(partition, said[start : start + EVENTS_MAX])

    def _send(self, partition: int, said: Sequence[Said]) -> None:
        if self._appender is None:
            return
        value = encode(Events(events=tuple(event for _, event in said)))
        if len(value) > EVENTS_BYTES_MAX and len(said) > 1:
            self._split(partition, said)
            return
        sent_s = time.perf_counter()
        future = asyncio.ensure_future(self._appender.append(REPLIES, partition, value))
        self._under_way.add(future)
        future.add_done_callback(lambda done: self._done(partition, said, sent_s, done))

    def _split(self, partition: int, said: Sequence[Said]) -> None:
        middle = len(said) // 2
        self._send(partition, said[:middle])
        self._send(partition, said[middle:])

    def _done(
        self,
        partition: int,
        said: Sequence[Said],
        sent_s: float,
        future: "asyncio.Future[Appended]",
    ) -> None:
        self._under_way.discard(future)
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or (error and not isinstance(error, RecordTooLarge)):
            self._fail(error)
        elif error:
            self._too_large(partition, said)
        else:
            self._observe_publish(time.perf_counter() - sent_s)
            self.learn(partition, future.result().offset + 1)
            for speech, _ in said:
                speech.acknowledged()

    def _too_large(self, partition: int, said: Sequence[Said]) -> None:
        """Certainly not appended: split it; a single event too large fails its request."""
        self._publish_failures.labels(REPLIES, "refused").inc()
        if len(said) > 1:
            self._split(partition, said)
            return
        speech, event = said[0]
        _log.error("an event of request %s is too large for a record", event.id)
        if speech.on_too_large is None:
            self._fail(None)
        else:
            speech.on_too_large()
        speech.acknowledged()

    def _fail(self, error: BaseException | None) -> None:
        appender, self._appender = self._appender, None
        self._buffers.clear()
        if appender is not None:
            self.failures_count += 1
            _log.warning("a publish to replies failed or is in doubt: %s", error)
            outcome = "refused" if isinstance(error, AppendFailed) else "unknown"
            self._publish_failures.labels(REPLIES, outcome).inc()
            closing = asyncio.ensure_future(appender.close(0.0))
            self._closing = closing  # keeps a reference until it is done
            self._on_failure()

    async def settled(self, timeout_seconds: float) -> None:
        """Waits until nothing is under way. What is still in doubt after the limit fails."""
        self._flush()
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=timeout_seconds)
        if self._under_way:
            self._fail(AppendUnknown("no ack within the limit"))
            raise LogError("publishes are still in doubt")

    async def fence(self, partitions: int, epoch: int, qs: tuple[str, ...]) -> None:
        """Appends the fence to every reply partition and awaits the acks. Raises LogError."""
        if self._appender is None:
            raise LogError("the writer of replies is broken")
        value = encode(Fence(epoch=epoch, qs=qs))
        acks = [self._appender.append(REPLIES, p, value) for p in range(partitions)]
        results = await asyncio.gather(*acks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                self._fail(result)
                raise LogError("a fence could not be written") from result

    async def close(self) -> None:
        """Flushes what is buffered and lets go."""
        if self._appender is not None:
            self._flush()
            if self._under_way:
                await asyncio.wait(set(self._under_way), timeout=5.0)
            appender, self._appender = self._appender, None
            await appender.close()
