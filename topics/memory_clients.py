"""What speaks to the in-process log: its appender, its tail, and what may go wrong."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from topics.ports import (
    Appended,
    AppendFailed,
    AppendUnknown,
    Headers,
    LogError,
    Partition,
    Record,
)
from topics.read_size import READ_BYTES_MAX, record_bytes

if TYPE_CHECKING:
    from topics.memory import MemoryLog

FaultKind = Literal["ack_lost", "ack_delayed", "append_lost", "append_late", "refused", "duplicate"]


@dataclass(slots=True, eq=False)
class Fault:
    """Something that goes wrong with the next appends that match, `count` times.

    `ack_lost`: stored, AppendUnknown. `append_lost`: not stored, AppendUnknown. `append_late`:
    AppendUnknown at once, stored `delay_seconds` later. `ack_delayed`: stored at once, acknowledged
    after `delay_seconds`. `refused`: AppendFailed. `duplicate`: stored twice, the first is told.
    """

    kind: FaultKind
    matches: Callable[[Record], bool]
    count: int = 1
    delay_seconds: float = 0.05
    fired_count: int = 0

    @property
    def fired(self) -> bool:
        """True once it went wrong."""
        return self.fired_count > 0


Ack = asyncio.Future[Appended]


class MemoryAppender:
    """See `topics.ports.Appender`. Records reach the log in the next turn of the loop."""

    def __init__(self, log: "MemoryLog") -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Record, Ack]] = deque()
        self._open: set[Ack] = set()
        self._refusing: AppendFailed | None = None
        self._timer: asyncio.TimerHandle | None = None

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> Ack:
        ack: Ack = self._loop.create_future()
        ack.add_done_callback(_retrieved)
        if self._refusing is not None:
            ack.set_exception(self._refusing)
            return ack
        self._open.add(ack)
        ack.add_done_callback(self._open.discard)
        self._queue.append((Record(topic, partition, -1, -1, key, value, headers), ack))
        if self._log.running.is_set():
            self._loop.call_soon(self._drain)
        elif self._timer is None:
            self._timer = self._loop.call_later(self._log.append_timeout_seconds, self._give_up)
            self._log.background(self._drain_when_running())
        return ack

    async def _drain_when_running(self) -> None:
        await self._log.running.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drain()

    def _drain(self) -> None:
        while self._queue and self._log.running.is_set():
            record, ack = self._queue.popleft()
            try:
                self._store(record, ack)
            except LogError as error:
                if not ack.done():
                    ack.set_exception(error)

    def _store(self, record: Record, ack: Ack) -> None:
        fault = self._log.next_fault(record)
        kind = fault.kind if fault else None
        delay_seconds = fault.delay_seconds if fault else 0.0
        if kind == "refused":
            raise AppendFailed("refused, as the test asked")
        if kind == "append_late":
            self._loop.call_later(delay_seconds, self._log.store, record)
        if kind in {"append_lost", "append_late"}:
            self._break("no acknowledgement came")
            return
        stored = self._log.store(record)
        if kind == "duplicate":
            self._log.store(record)
        if kind == "ack_lost":
            self._break("no acknowledgement came", ack)
        elif kind == "ack_delayed":
            self._loop.call_later(delay_seconds, _acknowledge, ack, stored)
        else:
            _acknowledge(ack, stored)

    def _give_up(self) -> None:
        self._timer = None
        self._break("the broker stayed away")

    def _break(self, reason: str, first: Ack | None = None) -> None:
        """Order and deduplication are no longer certain: all that is open is in doubt, too."""
        self._refusing = AppendFailed("the appender is broken: an append before was in doubt")
        self._queue.clear()
        for ack in [*([first] if first else []), *self._open]:
            if not ack.done():
                ack.set_exception(AppendUnknown(reason))

    async def close(self, timeout_seconds: float = 5.0) -> None:
        if self._refusing is None:
            self._refusing = AppendFailed("the appender is closed")
        if self._open:
            await asyncio.wait(set(self._open), timeout=timeout_seconds)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.clear()
        for ack in list(self._open):
            if not ack.done():
                ack.set_exception(AppendUnknown("closed before the acknowledgement came"))


class MemoryTail:
    """See `topics.ports.Tail`."""

    def __init__(self, log: "MemoryLog", positions: Mapping[Partition, int]) -> None:
        self._log = log
        self._positions = dict(positions)

    async def read(
        self,
        max_wait_seconds: float = 0.5,
        max_records: int = 1000,
        max_bytes: int = READ_BYTES_MAX,
    ) -> list[Record]:
        found = await self._log.fetch(lambda: self._positions, max_wait_seconds, max_records)
        records = within(max_bytes, found)
        for record in records:
            here = Partition(record.topic, record.partition)
            # who was served goes to the end of all, so that none is starved by the others
            self._positions.pop(here, None)
            self._positions[here] = record.offset + 1
        return records

    def position(self, partition: Partition) -> int:
        return self._positions[partition]

    def assign(self, positions: Mapping[Partition, int]) -> None:
        self._positions = dict(positions)
        self._log.wake()

    async def close(self) -> None:
        self._positions = {}


def within(room_bytes: int, records: list[Record]) -> list[Record]:
    """Those up to the one that fills so many bytes."""
    for count, record in enumerate(records, 1):
        room_bytes -= record_bytes(record)
        if room_bytes <= 0:
            return records[:count]
    return records


def _acknowledge(ack: Ack, stored: Record) -> None:
    if not ack.done():
        ack.set_result(Appended(stored.partition, stored.offset, stored.time_ms))


def _retrieved(ack: Ack) -> None:
    """An append that nobody awaits must not be reported as a lost exception."""
    if not ack.cancelled():
        ack.exception()
