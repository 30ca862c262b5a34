"""One tail per replica: from the home partitions to the mailboxes of the requests made here.

A request is watched before its record is published, so the reader holds its beginning; it is let go
with its terminal, or when nobody reads. So memory is bounded by the open streams.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from core.stream import Key, Reader, is_terminal
from producer_api.mailbox import Mailbox
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import UndecodableRecord, decode_reply
from schemas.ids import parse_request_id
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Tail
from topics.scan import REPLIES, late_reader

BEHIND_SECONDS = 2.0
SILENT_SECONDS = 6.0
"""A broker that has not told the ends of the home partitions for so long is away."""

_log = logging.getLogger(__name__)


def _partition(index: int) -> Partition:
    return Partition(REPLIES, index)


class ReplyRouter:
    """`start`, then `watch` and `unwatch`. `reading` says whether the tail is alive."""

    def __init__(
        self,
        log: Log,
        fence_tail: FenceTail,
        metrics: Metrics,
        home: Sequence[int],
        clock: BrokerClock | None = None,
    ) -> None:
        self.home = tuple(home)
        self._log = log
        self._fence_tail = fence_tail
        self._metrics = metrics
        self._clock = clock or BrokerClock()
        self._boxes: dict[Key, Mailbox] = {}
        self._readers: dict[int, Reader] = {}
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._records_read = metrics.records_read.labels(REPLIES)
        self._fetch = metrics.fetch.labels(REPLIES)
        self._opening = asyncio.Lock()
        self._answered_ms = 0

    async def start(self) -> "asyncio.Task[None]":
        """Begins at the end of the home partitions; returns the loop."""
        await self._open()
        self._measuring = asyncio.create_task(self._measure(), name="replies-behind")
        self._task = asyncio.create_task(self._run(), name="reply-router")
        return self._task

    @property
    def reading(self) -> bool:
        """True while the home partitions are being read, and their brokers answer.

        Also asked from other threads.
        """
        if self._task is None or self._task.done() or self._tail is None:
            return False
        return self._clock.wall_ms() - self._answered_ms < 1000 * SILENT_SECONDS

    async def _open(self) -> None:
        async with self._opening:
            self._tail = await self._log.tail(await self._begin(self.home))

    async def add(self, home: Sequence[int]) -> None:
        """Reads these as well, from their ends on; returns when it does. Raises LogError."""
        async with self._opening:
            new = [index for index in home if index not in self.home]
            positions = await self._begin(new)
            self.home += tuple(new)
            if self._tail is not None:  # else it is about to be opened, on all of them
                kept = (it for it in map(_partition, self.home) if it not in positions)
                self._tail.assign(positions | {it: self._tail.position(it) for it in kept})

    async def _begin(self, home: Sequence[int]) -> dict[Partition, int]:
        """Makes the readers of these partitions; returns where to read on."""
        here = list(map(_partition, home))
        ends = await self._log.end_offsets(here)
        self._answered_ms = self._clock.wall_ms()
        positions: dict[Partition, int] = {}
        for partition in here:
            begin = await late_reader(
                self._log,
                self._fence_tail,
                partition.index,
                ends[partition],
                self._boxes.get,
            )
            self._readers[partition.index] = begin.reader
            positions[partition] = begin.position
        return positions

    def watch(self, box: Mailbox) -> None:
        """From now on the events of this request go to the box.

        Whoever publishes an id has the turn of its key until both acks are there, and who has it next
        finds `Accepted` on the log: no id is published twice here while a box of it is open.
        """
        assert box.key not in self._boxes, "a second box would take the events of the first away"
        self._boxes[box.key] = box

    def unwatch(self, key: Key) -> None:
        """Nobody reads it here any more. Idempotent."""
        if self._boxes.pop(key, None) is not None:
            reader = self._readers.get(parse_request_id(key[1]).reply_partition)
            if reader is not None:
                reader.forget(key)

    def wake(self) -> None:
        """Lets go of whoever waits for an event: this replica is going away."""
        for box in self._boxes.values():
            box.wake()

    async def _run(self) -> None:
        while True:
            try:
                assert self._tail is not None
                records = await self._tail.read(max_wait_seconds=1.0)
                if records:
                    self._records_read.inc(len(records))
                    age_ms = self._clock.now_ms() - records[-1].time_ms
                    self._fetch.observe(max(0.0, age_ms / 1000))
                touched: dict[Mailbox, None] = {}
                for record in records:
                    self._feed(record.partition, record.offset, record.value, touched)
                for box in touched:  # once for all that came: what waits is sent together
                    box.wake()
            except OffsetOutOfRange:
                # away for longer than `replies` keeps: every stream reads on from the log
                _log.error("the tail of replies fell off the log: opening it anew")
                await self._begin_anew()

    async def _measure(self) -> None:
        """Tells now and then how far behind the log the tail is, for ever."""
        while True:
            await asyncio.sleep(BEHIND_SECONDS)
            here = list(map(_partition, self.home))
            try:
                ends = await self._log.end_offsets(here)
            except LogError:
                continue  # the figure stands still; `reading` says why
            self._answered_ms = self._clock.wall_ms()
            if (tail := self._tail) is not None:
                behind = sum(ends[it] - tail.position(it) for it in here)
                self._metrics.replies_behind_records.set(max(0, behind))

    async def _begin_anew(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None:
            await tail.close()
        while True:
            try:
                await self._open()
                break
            except LogError as error:
                _log.warning("replies cannot be read yet: %s", error)
                await asyncio.sleep(0.5)
        # also what was watched meanwhile: its beginning may lie before the new start
        for box in list(self._boxes.values()):
            box.overflow()
            self.unwatch(box.key)

    def _feed(
        self, partition: int, offset: int, value: bytes | None, touched: dict[Mailbox, None]
    ) -> None:
        try:
            record = decode_reply(value)
        except UndecodableRecord as error:
            self._metrics.log_faults.labels("undecodable_reply").inc()
            _log.error("undecodable record on replies/%s at %s: %s", partition, offset, error)
            return
        box: Mailbox
        for box, event in self._readers[partition].feed_followed(record):
            if box.overflowed:
                continue
            if not box.put(event):
                self._metrics.mailbox_drops.inc()
                self.unwatch(box.key)
                continue
            touched[box] = None
            if is_terminal(event):
                self.unwatch(box.key)

    async def close(self) -> None:
        """Ends the tail."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._tail is not None:
            await self._tail.close()
            self._tail = None
