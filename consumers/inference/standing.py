"""`Still`: what a living owner repeats on `fences`, so that retention may take its A and B.

A worker may own a partition for weeks, but `fences` keeps hours. Without it a reader that starts later
would find no floor for that partition, and believe a worker that slept as long.
"""

import asyncio
from collections.abc import Iterable, Mapping

from consumers.inference.ledger_writer import LedgerWriter
from consumers.inference.ownership import Owned
from core.epochs import FenceLog
from schemas.codec import encode
from schemas.fences import Still
from topics.fence_tail import FENCES, FenceTail
from topics.ports import Partition

RETENTION_SHARE = 0.5
"""Of `replies`' retention; `fences` keeps three of them."""

Owning = Mapping[Partition, Owned]


def stills(fences: FenceLog, owning: Iterable[Owning]) -> list[Still]:
    """One for each epoch that is owned, with what is still owned under it."""
    by_epoch: dict[int, list[str]] = {}
    for owned in owning:
        for q, it in owned.items():
            by_epoch.setdefault(it.epoch, []).append(str(q))
    found = (fences.still(epoch, tuple(sorted(qs))) for epoch, qs in sorted(by_epoch.items()))
    return [still for still in found if still is not None]


class Standing:
    """Repeats for ever. A repeat that is written twice, or late, raises nothing and harms nobody."""

    def __init__(
        self,
        fence_tail: FenceTail,
        ledger: LedgerWriter,
        owning: Iterable[Owning],
        reply_retention_seconds: float,
    ) -> None:
        self._fence_tail = fence_tail
        self._ledger = ledger
        self._owning = owning
        self._period_seconds = RETENTION_SHARE * reply_retention_seconds

    async def repeat(self) -> None:
        """A loop; the writer repeats what could not be appended."""
        while True:
            await asyncio.sleep(self._period_seconds)
            for still in stills(self._fence_tail.fences, self._owning):
                self._ledger.put(FENCES.topic, FENCES.index, b"", encode(still))
