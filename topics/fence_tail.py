"""The tail of `fences` that every worker and every API replica keeps for life."""

import asyncio
import contextlib
import logging

from core.epochs import FenceLog
from schemas.codec import UndecodableRecord, decode_fence
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Tail

FENCES = Partition("fences", 0)

IDENTITY_SECONDS = 10.0
LOOK_SECONDS = 0.25
RETRY_SECONDS = 0.1

_log = logging.getLogger(__name__)


class FencesLost(LogError):
    """`fences` was recreated or cut off below us: what we believe of epochs is worth nothing."""


class FenceTail:
    """Folds `fences` into `fences` as records arrive; `caught_up` makes it current on demand.

    `changed` is set whenever a record was folded; whoever waits on it clears it first. A failure
    that cannot be mended (the topic was recreated) is kept in `failure` and raised by `caught_up`; a
    process that meets it must start anew. It shows in four ways: the topic has another id, ends
    before the position reached, does not reach back to it, or (told by `lost`) its epochs are lower
    than those that `replies` already knows.
    """

    def __init__(self, log: Log, retention_ms: int) -> None:
        self.fences = FenceLog()
        self.changed = asyncio.Event()
        self.failure: FencesLost | None = None
        self._log = log
        self._retention_ms = retention_ms
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._position = 0
        self._topic_id = ""
        self._progress = asyncio.Condition()

    @classmethod
    async def open(cls, log: Log, *, retention_ms: int = 3 * 3_600_000) -> "FenceTail":
        """Starts the tail at the log's start and returns once it is current."""
        self = cls(log, retention_ms)
        self._topic_id = await self._identity()
        start = (await log.start_offsets([FENCES]))[FENCES]
        self._position = start
        self._tail = await log.tail({FENCES: start})
        self._task = asyncio.create_task(self._run(), name="fence-tail")
        self._watching = asyncio.create_task(self._watch(), name="fence-identity")
        await self.caught_up()
        return self

    async def until_lost(self) -> None:
        """Raises FencesLost, or LogError if they are not read any more; returns after `close`."""
        while self._task is not None:
            if self.failure:
                raise self.failure
            if self._task.done():
                raise LogError("the tail of fences has ended")
            await asyncio.sleep(LOOK_SECONDS)

    async def lost(self, how: str) -> None:
        """Takes note that `fences` is not what it was. Every `caught_up` raises from now on."""
        if self.failure is None:
            _log.critical("fences lost: %s; this process must start anew", how)
            self.failure = FencesLost(f"fences are not what they were: {how}")
        self.changed.set()
        async with self._progress:
            self._progress.notify_all()

    async def _identity(self) -> str:
        """The topic's id; '' where it is not told."""
        state = (await self._log.describe([FENCES.topic])).get(FENCES.topic)
        return state.topic_id if state is not None else ""

    async def _watch(self) -> None:
        """A topic that was recreated and filled again looks like the one before, but for its id."""
        while True:
            await asyncio.sleep(IDENTITY_SECONDS)
            try:
                await self._check_identity()
            except LogError as error:
                _log.debug("the id of fences could not be asked: %s", error)

    async def _check_identity(self) -> None:
        now = await self._identity()
        if self._topic_id and now and now != self._topic_id:
            await self.lost("the topic was deleted and made again")
        self._topic_id = self._topic_id or now

    @property
    def position(self) -> int:
        """The offset after the last record folded."""
        return self._position

    async def caught_up(self, timeout_seconds: float = 15.0) -> None:
        """Returns when everything up to an end offset taken after this call is folded.

        Raises LogError if the log is away for longer than the limit, FencesLost if it was recreated.
        """
        position = self._position
        until_s = asyncio.get_running_loop().time() + timeout_seconds
        while (end := (await self._log.end_offsets([FENCES]))[FENCES]) < position:
            # a new leader may lag for a moment; another topic under the same name does not catch up
            await self._check_identity()
            if self.failure is None and asyncio.get_running_loop().time() > until_s:
                await self.lost(f"the topic ends at {end}, and {position} was read before")
            if self.failure:
                raise self.failure
            await asyncio.sleep(RETRY_SECONDS)
        await self.reached(end, timeout_seconds)

    async def reached(self, end: int, timeout_seconds: float = 15.0) -> None:
        """Returns when the record at `end` - 1 is folded. Raises like `caught_up`."""
        try:
            async with asyncio.timeout(timeout_seconds), self._progress:
                await self._progress.wait_for(
                    lambda: self._position >= end or self._ended() or self.failure is not None
                )
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
                # by the tail's word: the last offset may hold no record (the end of a transaction)
                if (position := self._tail.position(FENCES)) != self._position:
                    async with self._progress:
                        self._position = position
                        self._progress.notify_all()
                    self.changed.set()
        except OffsetOutOfRange:
            await self.lost("the position reached is not on the topic any more")
        finally:
            self.changed.set()
            async with self._progress:
                self._progress.notify_all()

    async def close(self) -> None:
        """Ends the tail. Idempotent."""
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._tail:
            await self._tail.close()
            self._tail = None
