"""The API's tail of `control`: what was deleted, and which tickets were used up.

Every replica reads all of it, from as far back as an answer is kept, before it is ready: so what was
deleted through one replica is gone on every other, also on one that starts later.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from core.limits import Limits
from core.stream import Key
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import UndecodableRecord, decode_control
from schemas.operations import Control
from topics.catalogue import CONTROL
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Record, Tail

HERE = Partition(CONTROL, 0)

_log = logging.getLogger(__name__)


class ControlTail:
    """`start`, then ask. `on_deleted` is called for each request as its deletion is met."""

    def __init__(
        self,
        log: Log,
        clock: BrokerClock,
        limits: Limits,
        metrics: Metrics,
        on_deleted: Callable[[Key], None],
    ) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._on_deleted = on_deleted
        self._deleted: dict[Key, float] = {}  # -> broker time of the record, in ms
        self._used: dict[str, tuple[str, float]] = {}  # ticket -> (use, broker time in ms)
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None
        self._position = 0
        self._progress = asyncio.Condition()

    async def start(self) -> "asyncio.Task[None]":
        """Reads up to now; returns the loop that goes on. Raises LogError."""
        await self._open()
        self._task = asyncio.create_task(self._run(), name="control-tail")
        await self.caught_up()
        return self._task

    @property
    def reading(self) -> bool:
        """True while `control` is being read."""
        return self._task is not None and not self._task.done()

    async def _open(self) -> None:
        kept_s = self._limits.reply_retention_seconds + self._limits.clock_skew_seconds
        since_ms = max(0, int(self._clock.now_ms() - 1000 * kept_s))
        self._position = (await self._log.offsets_at({HERE: since_ms}))[HERE]
        if self._tail is None:
            self._tail = await self._log.tail({HERE: self._position})
        else:
            self._tail.assign({HERE: self._position})

    async def _run(self) -> None:
        assert self._tail is not None
        while True:
            try:
                records = await self._tail.read(max_wait_seconds=1.0)
            except OffsetOutOfRange:
                _log.critical("control was cut off or recreated: reading it anew")
                await self._reopen()
                continue
            for record in records:
                self._take(record)
            # by the tail's word: the last offset may hold no record (the end of a transaction)
            if (position := self._tail.position(HERE)) != self._position:
                async with self._progress:
                    self._position = position
                    self._progress.notify_all()
            self._prune()

    async def _reopen(self) -> None:
        try:
            await self._open()
        except LogError as error:
            _log.warning("control cannot be read yet: %s", error)
            await asyncio.sleep(0.5)

    def _take(self, record: Record) -> None:
        try:
            control = decode_control(record.value)
        except UndecodableRecord as error:
            self._metrics.log_faults.labels("undecodable_control").inc()
            _log.error("undecodable record on control at %s: %s", record.offset, error)
            return
        if control.kind == "delete" and control.tenant and control.request_id:
            key = (control.tenant, control.request_id)
            self._deleted[key] = record.time_ms
            self._on_deleted(key)
        elif control.kind == "redeem" and control.ticket and control.use:
            self._used.setdefault(control.ticket, (control.use, record.time_ms))

    def _prune(self) -> None:
        """What is older than any answer, or than any ticket, is refused for its age alone."""
        now_ms = self._clock.now_ms()
        skew_s = self._limits.clock_skew_seconds
        _forget(self._deleted, now_ms - 1000 * (self._limits.reply_retention_seconds + skew_s))
        oldest_ms = now_ms - 1000 * (self._limits.ticket_seconds + skew_s)
        while self._used:
            ticket = next(iter(self._used))
            if self._used[ticket][1] > oldest_ms:
                return
            del self._used[ticket]

    def is_deleted(self, key: Key) -> bool:
        """Whether a deletion was read; ask `caught_up` first where it must be current."""
        return key in self._deleted

    def use_of(self, ticket: str) -> str | None:
        """Who used a ticket first, in log order; None: nobody yet."""
        used = self._used.get(ticket)
        return None if used is None else used[0]

    @property
    def is_full_of_deletions(self) -> bool:
        """As many as may be remembered: no more are taken until some are out of date."""
        return len(self._deleted) >= self._limits.deleted_ids

    @property
    def is_full_of_tickets(self) -> bool:
        """The same for tickets."""
        return len(self._used) >= self._limits.tickets

    async def caught_up(self) -> None:
        """Returns when everything up to an end taken after this call was read. Raises LogError."""
        end = (await self._log.end_offsets([HERE]))[HERE]
        if self._position >= end:
            return
        try:
            async with asyncio.timeout(self._limits.publish_seconds), self._progress:
                await self._progress.wait_for(lambda: self._position >= end or not self.reading)
        except TimeoutError:
            raise LogError("control could not be read in time") from None
        if self._position < end:
            raise LogError("the tail of control has ended")

    async def close(self) -> None:
        """Ends the tail. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._tail is not None:
            await self._tail.close()
            self._tail = None


def _forget(times: dict[Key, float], before_ms: float) -> None:
    """Drops the oldest entries; they stand in the order of the log."""
    while times:
        key = next(iter(times))
        if times[key] > before_ms:
            return
        del times[key]


def deletion(key: Key) -> Control:
    """The record that deletes a request on every replica."""
    return Control(kind="delete", tenant=key[0], request_id=key[1], reason="client")
