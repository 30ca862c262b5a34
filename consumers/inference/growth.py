"""`replies` may grow while workers run: then they fence again, before they speak on the new partitions.

An id names its reply partition. One that an owner's fences do not cover is either new, since the topic
has grown, or not there at all, since whoever made the id made it up.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from consumers.inference.ownership import Owned
from consumers.inference.tier import TierConsumer
from topics.catalogue import REPLIES
from topics.ports import Log, LogError

ASKED_AGAIN_SECONDS = 1.0
"""A made-up id must not cost a question each."""
DENIALS = 2
"""A broker may learn of new partitions a moment after the one that an API replica asked."""

_log = logging.getLogger(__name__)


class ReplyGrowth:
    """Asks the log for the size of `replies`, and ends the epochs that do not cover all of it.

    Their partitions are acquired again, from the committed offset, under fences on every partition; so a
    record that was met too early is simply read again.
    """

    def __init__(self, log: Log, tiers: Sequence[TierConsumer]) -> None:
        self._log = log
        self._tiers = tiers
        self._asking = asyncio.Lock()
        self._count = 0
        self._asked_s = float("-inf")
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
                count = await self._size()
            except LogError as error:
                _log.warning("replies: its size could not be asked: %s", error)
                await asyncio.sleep(ASKED_AGAIN_SECONDS)
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

    async def _size(self) -> int:
        """As the log says in an answer to a question begun after this call, one a second."""
        loop = asyncio.get_running_loop()
        called_s = loop.time()
        async with self._asking:
            if self._asked_s <= called_s:
                await asyncio.sleep(max(0.0, self._asked_s + ASKED_AGAIN_SECONDS - loop.time()))
                self._asked_s = loop.time()
                self._count = await self._log.partition_count(REPLIES, fresh=True)
            return self._count

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
