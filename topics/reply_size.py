"""How many partitions `replies` has, asked when an id names one that is not known yet."""

import asyncio

from topics.catalogue import REPLIES
from topics.ports import Log

ASKED_AGAIN_SECONDS = 1.0
"""A made-up id must not cost a question each."""


class ReplySize:
    """Shares one question a second among all who ask."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._asking = asyncio.Lock()
        self._count = 0
        self._asked_s = float("-inf")

    async def now(self) -> int:
        """As an answer says whose question was begun after this call. Raises LogError."""
        loop = asyncio.get_running_loop()
        called_s = loop.time()
        async with self._asking:
            if self._asked_s <= called_s:
                await asyncio.sleep(max(0.0, self._asked_s + ASKED_AGAIN_SECONDS - loop.time()))
                begun_s = loop.time()
                self._count = await self._log.partition_count(REPLIES, fresh=True)
                self._asked_s = begun_s
            return self._count
