"""After a takeover: what an earlier owner had begun is read before anything else of its tier.

Somebody waits in the middle of a sentence. Else the backlog of the partition that happens to be read
first would take every slot, and the sentence would go on when that is done.
"""

from collections.abc import Mapping

from consumers.inference.ownership import Owned
from topics.ports import Partition

HOLD_SECONDS_MAX = 10.0  # a partition that cannot be read does not hold the others back for longer


class StartedFirst:
    """Which partitions of a tier wait. `owned` is the tier's own map, as it changes."""

    def __init__(self, owned: Mapping[Partition, Owned]) -> None:
        self._owned = owned
        self._until_s: float | None = None

    def begin(self, now_s: float) -> None:
        """Partitions were taken over."""
        self._until_s = now_s + HOLD_SECONDS_MAX

    def holds(self, q: Partition) -> bool:
        """True for one without begun requests ahead, while another one has some."""
        return self._until_s is not None and not self._owned[q].started_ahead and self._any_ahead()

    def ended(self, now_s: float) -> bool:
        """True once: the call before, partitions may still have been held back; now none is."""
        if self._until_s is None or (now_s < self._until_s and self._any_ahead()):
            return False
        self._until_s = None
        return True

    def _any_ahead(self) -> bool:
        return any(it.started_ahead for it in self._owned.values())
