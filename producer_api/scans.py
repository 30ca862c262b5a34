"""Answers read back from the log, counted: each costs a reader of its own."""

from core.stream import Key
from producer_api.streams import Follower
from runtime.metrics import Metrics
from topics.fence_tail import FenceTail
from topics.ports import Log


class CountedFollower(Follower):
    """A follower that shows in the metrics, once, when it is opened.

    `reason`: `status` (one look), `follow` (a stream that has no mailbox here), `mailbox` (one that
    lost it).
    """

    def __init__(
        self,
        log: Log,
        fence_tail: FenceTail,
        key: Key,
        skew_ms: int,
        metrics: Metrics,
        reason: str,
    ) -> None:
        super().__init__(log, fence_tail, key, skew_ms)
        self._scans = metrics.log_scans.labels(reason)
        self._counted = False

    async def open(self) -> None:
        """Finds where to begin. Raises LogError."""
        if not self._counted:
            self._counted = True
            self._scans.inc()
        await super().open()
