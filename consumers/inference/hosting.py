"""What a tier needs of the worker that hosts it."""

from typing import Protocol

from consumers.inference.measures import Measures
from consumers.inference.ownership import Owned
from schemas.requests import Tier
from topics.ports import Record


class Host(Protocol):
    """The worker, as its tiers see it."""

    measures: Measures

    def pick_up(self, owned: Owned, record: Record) -> None:
        """Takes a record that this worker owns; the offset is not tracked yet."""
        ...

    def room(self, tier: Tier) -> int:
        """How many more records of the tier may be picked up now."""
        ...

    def drop(self, qs: frozenset[str]) -> None:
        """Forgets all work of these request partitions."""
        ...

    async def cover_cancels(self, appended_ms: int) -> None:
        """Makes sure that cancels of what was appended since then are known."""
        ...

    def count(self, what: str, reason: str = "") -> None:
        """Counts `rebalance`, `commit`, `epoch_ended` … in the worker's metrics."""
        ...
