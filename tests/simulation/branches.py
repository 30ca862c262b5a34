"""Counts branches of the product that leave no counter of its own."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from consumers.inference.tier import TierConsumer
from core.epochs import FenceLog
from core.scheduler import Scheduler


@contextlib.contextmanager
def counting(counts: "Counter[str]") -> Iterator[None]:
    """While it lasts, `epoch kept`, `stepped back` and `copy attached` are counted."""
    keep, late_start, arrive = TierConsumer._keep, FenceLog.late_start, Scheduler._arrive

    async def counted_keep(self: TierConsumer) -> None:
        candidates = self._wanted & set(self.owned)
        await keep(self)
        counts["epoch kept"] += len(candidates & set(self.owned) - self._wanted)

    def counted_late_start(self: FenceLog, partition: int, position: int) -> Any:
        floors, start = late_start(self, partition, position)
        counts["stepped back"] += start < position
        return floors, start

    def counted_arrive(self: Scheduler, work: Any, *args: Any) -> None:
        firsts = [it for it in self._known.get(work.key, ()) if it.q == work.q]
        counts["copy attached"] += bool(firsts) and not work.spoken
        arrive(self, work, *args)

    with (
        patch.object(TierConsumer, "_keep", counted_keep),
        patch.object(FenceLog, "late_start", counted_late_start),
        patch.object(Scheduler, "_arrive", counted_arrive),
    ):
        yield
