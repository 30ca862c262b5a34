"""The tail of `fences` that every worker and every API replica keeps for life."""

import asyncio
import contextlib
import logging

from core.epochs import FenceLog
from schemas.codec import UndecodableRecord, decode_fence
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Tail

FENCES = Partition("fences", 0)

_log = logging.getLogger(__name__)


class FencesLost(LogError):
    """`fences` was recreated or cut off below us: what we believe of epochs is worth nothing."""


class FenceTail:
    """Folds `fences` into `fences` as records arrive; `caught_up` makes it current on demand.

    `changed` is set whenever a record was folded; whoever waits on it clears it first. A failure
    that cannot be mended (the topic was recreated) is kept in `failure` and raised by `caught_up`.
    """

    def __init__(self, log: Log, retention_ms: int) -> None:
        self.fences = FenceLog()
        self.changed = asyncio.Event()
        self.failure: FencesLost | None = None
        self._log = log
        self._retention_ms = retention_ms
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None
        self._position = 0
        self._progress = asyncio.Condition()

    @classmethod
    async def open(cls, log: Log, *, retention_ms: int = 3 * 3_600_000) -> "FenceTail":
        """Starts the tail at the log's start and returns once it is current."""
        self = cls(log, retention_ms)
        start = (await log.start_offsets([FENCES]))[FENCES]
        self._position = start
        self._tail = await log.tail({FENCES: start})
        self._task = asyncio.create_task(self._run(), name="fence-tail")
        await self.caught_up()
        return self

    @property
    def position(self) -> int:
        """The offset after the last record folded."""
        return self._position

    async def caught_up(self, timeout_seconds: float = 15.0) -> None:
        """Returns when everything up to an end offset taken after this call is folded.

        Raises LogError if the log is away for longer than the limit, FencesLost if it was recreated.
        """
        end = (await self._log.end_offsets([FENCES]))[FENCES]
        await self.reached(end, timeout_seconds)

    async def reached(self, end: int, timeout_seconds: float = 15.0) -> None:
        """Returns when the record at `end` - 1 is folded. Raises like `caught_up`."""
        try:
            async with asyncio.timeout(timeout_seconds), self._progress:
                await self._progress.wait_for(lambda: self._position >= end or self._ended())
        except TimeoutError:
            raise LogError(f"fences could not be read up to {end} in {timeout_seconds} s") from None
        if self.failure:
            raise self.failure
        if self._position < end:
            raise LogError("the tail of fences has ended")

    def _ended(self) -> bool:
        return self._task is None or self._task.done()

    async def _run(self) -> None:
        assert self._tail is not None
        try:
            while True:
                records = await self._tail.read(max_wait_seconds=1.0)
                for record in records:
                    try:
                        self.fences.feed(record.offset, record.time_ms, decode_fence(record.value))
                    except UndecodableRecord as error:
                        # readers are upgraded before writers, so this is nobody's valid fence
                        _log.error("undecodable fence at %s: %s", record.offset, error)
                if records:
                    self.fences.prune(records[-1].time_ms - self._retention_ms)
                    async with self._progress:
                        self._position = records[-1].offset + 1
                        self._progress.notify_all()
                    self.changed.set()
        except OffsetOutOfRange:
            self.failure = FencesLost("fences were recreated or cut off below this reader")
            _log.critical("fences lost: this process must start anew")
        finally:
            self.changed.set()
            async with self._progress:
                self._progress.notify_all()

    async def close(self) -> None:
        """Ends the tail. Idempotent."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._tail:
            await self._tail.close()
            self._tail = None
