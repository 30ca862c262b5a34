"""The tail of `control`: cancels, told to the scheduler as they come, and looked up backwards.

A cancel names an id, which says when its request was made: what was appended before that, by clocks that
may differ, cannot concern it. The append time of the request says less: what was published in doubt may
be appended behind its own cancel.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from math import inf

from schemas.codec import UndecodableRecord, decode_control
from topics.catalogue import CONTROL
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Record, Tail

HERE = Partition(CONTROL, 0)
RETRY_SECONDS_MAX = 2.0
EMPTY_READS_MAX = 20
"""Of half a second each, in a row, where records should lie; then the look-up has failed."""

OnCancel = Callable[[str, str, bool], None]

_log = logging.getLogger(__name__)


class CancelTail:
    """Reads `control` from start-up on, and what came before when older work is met.

    `cover` does so before partitions are taken over; `look_back` soon, for each request: it is begun
    meanwhile, and is cancelled like any other that runs.
    """

    def __init__(self, log: Log, skew_ms: int) -> None:
        self._log = log
        self._skew_ms = skew_ms
        self._on_cancel: OnCancel = lambda _tenant, _request_id, _earlier: None
        self._tail: Tail | None = None
        self._from = 0
        self._since_ms = inf  # what was appended since then is told, or will be
        self._look = asyncio.Event()
        self._covering = asyncio.Lock()

    async def start(self, on_cancel: OnCancel) -> list[asyncio.Task[None]]:
        """Starts at the end; returns the loops, whose failure is the worker's.

        `on_cancel` is told tenant and id of what need not run (on), and whether that was looked up.
        """
        self._on_cancel = on_cancel
        self._from = (await self._log.end_offsets([HERE]))[HERE]
        self._tail = await self._log.tail({HERE: self._from})
        return [
            asyncio.create_task(self._run(self._tail), name="cancel-tail"),
            asyncio.create_task(self._look_back(), name="cancels-before"),
        ]

    async def _run(self, tail: Tail) -> None:
        while True:
            try:
                for record in await tail.read(max_wait_seconds=1.0):
                    self._take(record, earlier=False)
            except OffsetOutOfRange:
                await self._begin_anew(tail)

    async def _begin_anew(self, tail: Tail) -> None:
        try:
            start = (await self._log.start_offsets([HERE]))[HERE]
        except LogError as error:
            _log.warning("control was cut off or recreated, and does not say where: %s", error)
            await asyncio.sleep(RETRY_SECONDS_MAX)
            return  # what it reads is out of range again
        _log.critical("control was cut off or recreated: going on from %s", start)
        tail.assign({HERE: start})
        self._from = start  # nothing before it is there to be looked up

    def _take(self, record: Record, *, earlier: bool) -> None:
        try:
            control = decode_control(record.value)
        except UndecodableRecord as error:
            _log.error("undecodable record on control at %s: %s", record.offset, error)
            return
        # nobody can read what was deleted: it need not run on
        if control.kind in ("cancel", "delete") and control.tenant and control.request_id:
            self._on_cancel(control.tenant, control.request_id, earlier)

    def look_back(self, made_ms: int) -> None:
        """Tells soon what was cancelled since `made_ms` (an id's time) and is not known yet."""
        since_ms = made_ms - self._skew_ms
        if since_ms < self._since_ms:
            self._since_ms = since_ms
            self._look.set()

    async def _look_back(self) -> None:
        pause_seconds = 0.1
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                await self._cover(self._since_ms)
                pause_seconds = 0.1
            except LogError as error:
                _log.warning("cancels of older requests are not known yet: %s", error)
                self._look.set()
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(RETRY_SECONDS_MAX, pause_seconds * 2)

    async def cover(self, appended_ms: int) -> None:
        """Takes the cancels of all that was appended since then. Raises LogError if the log is away."""
        async with self._covering:  # the tiers take over at once, and one look-up does for all
            await self._cover(appended_ms - self._skew_ms)

    async def _cover(self, since_ms: float) -> None:
        """Beside another one it may tell what that one tells as well, and misses nothing."""
        start = (await self._log.offsets_at({HERE: max(0, int(since_ms))}))[HERE]
        if start < self._from:
            await self._take_from(start)
        self._since_ms = min(self._since_ms, since_ms)

    async def _take_from(self, start: int) -> None:
        tail = await self._log.tail({HERE: start})
        empty_reads = 0
        try:
            while (position := tail.position(HERE)) < self._from:
                records = await tail.read(max_wait_seconds=0.5)
                for record in records:
                    if record.offset < self._from:
                        self._take(record, earlier=True)
                if records or tail.position(HERE) != position:
                    empty_reads = 0
                    continue
                await self._still_there()
                empty_reads += 1
                if empty_reads == EMPTY_READS_MAX:
                    raise LogError(f"control cannot be read at {position}")
        finally:
            await tail.close()
        self._from = min(self._from, start)  # it was recreated meanwhile if it is less

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
