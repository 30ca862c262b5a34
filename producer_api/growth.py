"""`replies` may grow while replicas run: each takes up its share of the new partitions."""

import asyncio
import logging

from producer_api.placement import Placement
from producer_api.publisher import unavailable
from producer_api.reply_router import ReplyRouter
from schemas.ids import parse_request_id
from topics.ports import Log, LogError
from topics.reply_size import ReplySize

LOOK_SECONDS = 10.0

_log = logging.getLogger(__name__)


def home_partitions(count: int, replica_index: int, replica_count: int) -> list[int]:
    """Those whose requests this replica takes in; replicas beyond the count share one."""
    home = [p for p in range(count) if p % replica_count == replica_index]
    return home or [replica_index % count]


class ReplyGrowth:
    """Looks now and then, and when an id names a partition that is not known yet."""

    def __init__(
        self, log: Log, router: ReplyRouter, placement: Placement, replica: tuple[int, int]
    ) -> None:
        self._size = ReplySize(log)
        self._router = router
        self._placement = placement
        self._replica = replica
        self._adopting = asyncio.Lock()

    async def follow(self) -> None:
        """A loop."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except LogError as error:
                _log.warning("replies: its size could not be asked: %s", error)

    async def look(self) -> None:
        """Takes up what has been added. Raises LogError."""
        count = await self._size.now()
        async with self._adopting:
            if count <= self._placement.reply_partitions:
                return
            home = home_partitions(count, *self._replica)
            # read first: an id of a partition that is not read yet would have no mailbox
            await self._router.add(home)
            self._placement.grow(home, count)
        _log.warning("replies has grown to %s partitions; home are %s", count, home)

    async def meet(self, request_id: str) -> None:
        """Looks if the id names a partition that is not known. Raises Refusal `unavailable`."""
        try:
            partition = parse_request_id(request_id).reply_partition
        except ValueError:
            return  # no id of ours: whoever checks it says so
        if partition < self._placement.reply_partitions:
            return
        try:
            await self.look()
        except LogError as error:
            raise unavailable() from error
