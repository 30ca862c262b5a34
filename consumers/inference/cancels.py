"""The tail of `control`: cancels, told to the scheduler as they come, and looked up backwards."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from schemas.codec import UndecodableRecord, decode_control
from topics.catalogue import CONTROL
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Record, Tail

HERE = Partition(CONTROL, 0)

_log = logging.getLogger(__name__)


class CancelTail:
    """Reads `control` from start-up on; `cover` reads what came before, when older work is met."""

    def __init__(self, log: Log, on_cancel: Callable[[str, str], None]) -> None:
        self._log = log
        self._on_cancel = on_cancel
        self._tail: Tail | None = None
        self._from = 0
        self._covering = asyncio.Lock()

    async def start(self) -> asyncio.Task[None]:
        """Starts at the end; returns the loop, whose failure is the worker's."""
        self._from = (await self._log.end_offsets([HERE]))[HERE]
        self._tail = await self._log.tail({HERE: self._from})
        return asyncio.create_task(self._run(self._tail), name="cancel-tail")

    async def _run(self, tail: Tail) -> None:
        while True:
            try:
                for record in await tail.read(max_wait_seconds=1.0):
                    self._take(record)
            except OffsetOutOfRange:
                start = (await self._log.start_offsets([HERE]))[HERE]
                _log.critical("control was cut off or recreated: going on from %s", start)
                tail.assign({HERE: start})

    def _take(self, record: Record) -> None:
        try:
            control = decode_control(record.value)
        except UndecodableRecord as error:
            _log.error("undecodable record on control at %s: %s", record.offset, error)
            return
        # nobody can read what was deleted: it need not run on
        if control.kind in ("cancel", "delete") and control.tenant and control.request_id:
            self._on_cancel(control.tenant, control.request_id)

    async def cover(self, since_ms: int) -> None:
        """Takes every cancel appended since `since_ms`. Raises LogError if the log is away."""
        async with self._covering:
            start = (await self._log.offsets_at({HERE: max(0, since_ms)}))[HERE]
            if start >= self._from:
                return
            tail = await self._log.tail({HERE: start})
            try:
                while (position := tail.position(HERE)) < self._from:
                    records = await tail.read(max_wait_seconds=0.5)
                    for record in records:
                        self._take(record)
                    if not records and tail.position(HERE) == position:
                        await self._still_there()
            finally:
                await tail.close()
            self._from = start

    async def _still_there(self) -> None:
        """An empty read may mean that the broker is away: then this raises LogError."""
        end = (await self._log.end_offsets([HERE]))[HERE]
        if end < self._from:
            raise LogError("control was recreated while it was read")

    async def close(self) -> None:
        """Lets go of the tail."""
        if self._tail is not None:
            with contextlib.suppress(LogError):
                await self._tail.close()
            self._tail = None
