"""Records appended long after their id was made: perhaps a second publication of the same request.

A replica that died between claim and publish leaves a claim; another publishes under the same id,
later. Before such a record runs, the log is asked whether the id was spoken for already.
"""

import asyncio
import logging
from collections.abc import Callable

from core.work import Work
from schemas.codec import UndecodableRecord
from schemas.ids import parse_request_id
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError, Partition
from topics.scan import REPLIES, late_reader, scan

SCANS_MAX = 2
ATTEMPTS_MAX = 8

_log = logging.getLogger(__name__)

Judged = Callable[[Work, str], None]


class LateCopies:
    """Asks the log about one work after another, two scans at a time."""

    def __init__(self, log: Log, fence_tail: FenceTail, skew_ms: int) -> None:
        self._log = log
        self._fence_tail = fence_tail
        self._skew_ms = skew_ms
        self._places = asyncio.Semaphore(SCANS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, work: Work, judged: Judged) -> None:
        """Calls `judged(work, 'run' | 'done' | 'expired')` once the log has answered.

        Or `'unjudged'` if it did not: then nothing is known, and nothing may follow from it.
        """
        task = asyncio.create_task(self._ask(work, judged), name="late-copy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, work: Work, judged: Judged) -> None:
        async with self._places:
            for attempt in range(ATTEMPTS_MAX):
                try:
                    judged(work, await self._verdict(work))
                    return
                except (LogError, UndecodableRecord) as error:
                    _log.warning(
                        "asking the log about a late copy failed: %s",
                        error,
                        extra={"request_id": work.request.id},
                    )
                    await asyncio.sleep(min(2.0, 0.1 * 2**attempt))
        # left incomplete: its partition is taken over, and asked again, when the worker restarts
        judged(work, "unjudged")
        _log.error("a late copy stays unjudged", extra={"request_id": work.request.id})

    async def _verdict(self, work: Work) -> str:
        parts = parse_request_id(work.request.id)
        here = Partition(REPLIES, parts.reply_partition)
        since_ms = max(0, parts.time_ms - self._skew_ms)
        position = (await self._log.offsets_at({here: since_ms}))[here]
        start = (await self._log.start_offsets([here]))[here]
        key = work.key
        begin = await late_reader(
            self._log, self._fence_tail, here.index, position, lambda wanted: wanted == key
        )
        end = (await self._log.end_offsets([here]))[here]
        oldest_ms: int | None = None
        async for record, reply in scan(self._log, here.index, begin.position, end):
            oldest_ms = record.time_ms if oldest_ms is None else oldest_ms
            begin.reader.feed(reply)
        state = begin.reader.states.get(key)
        if state is not None and state.origin is not None:
            return "done"  # this origin has not been started: another one is bound
        cut_off = position <= start and start > 0 and (oldest_ms is None or oldest_ms > since_ms)
        return "expired" if cut_off else "run"

    async def close(self) -> None:
        """Ends what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
