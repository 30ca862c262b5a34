"""`replies` may grow while workers run: then they fence again, before they speak on the new partitions.

An id names its reply partition. One that an owner's fences do not cover is either new, since the topic
has grown, or not there at all, since whoever made the id made it up.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from consumers.inference.ownership import Owned
from consumers.inference.tier import TierConsumer
from topics.ports import Log, LogError
from topics.reply_size import ReplySize

RETRY_SECONDS = 0.5
DENIALS = 2
"""A broker may learn of new partitions a moment after the one that an API replica asked."""

_log = logging.getLogger(__name__)


class ReplyGrowth:
    """Asks the log for the size of `replies`, and ends the epochs that do not cover all of it.

    Their partitions are acquired again, from the committed offset, under fences on every partition; so a
    record that was met too early is simply read again.
    """

    def __init__(self, log: Log, tiers: Sequence[TierConsumer]) -> None:
        self._size = ReplySize(log)
        self._tiers = tiers
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, owned: Owned, partition: int, made_up: Callable[[], None]) -> None:
        """Finds out about a reply partition that `owned` does not cover.

        Calls `made_up` if there is none, unless the epoch has ended meanwhile. Returns at once; what
        waits is bounded by what a worker may have started.
        """
        task = asyncio.create_task(self._ask(owned, partition, made_up), name="reply-growth")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, owned: Owned, partition: int, made_up: Callable[[], None]) -> None:
        denied = 0
        while self._is_owned(owned):
            try:
                count = await self._size.now()
            except LogError as error:
                _log.warning("replies: its size could not be asked: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not self._is_owned(owned):
                return
            if partition < count:
                self._fence_again(count)
                return
            denied += 1
            if denied >= DENIALS:
                made_up()
                return

    def _is_owned(self, owned: Owned) -> bool:
        return any(tier.owned.get(owned.q) is owned for tier in self._tiers)

    def _fence_again(self, count: int) -> None:
        _log.warning("replies has grown to %s partitions: fencing again", count)
        for tier in self._tiers:
            short = [q for q, it in tier.owned.items() if it.reply_partitions < count]
            tier.end_epochs("replies has grown", short)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
