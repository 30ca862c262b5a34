"""Requests that may be poison: they run alone on their worker until their first new token.

One of them at a time, with nothing beside it: whoever dies then died of this request alone. It
starts when nothing else runs. So that this comes to pass, the others' starts are held back while one
waits; so that nobody is blocked for ever, only every other `hold_seconds`. How long it can wait in
all is bounded by its own deadline.
"""

from collections import deque

from core.work import Phase, Work
from schemas.requests import Tier


class Solitude:
    """Who waits to run alone, and who does. The caller tells how many runs there are."""

    def __init__(self, starts_max: int, hold_seconds: float) -> None:
        self.starts_max = starts_max
        self.alone: Work | None = None
        """Runs alone, and has brought no new token yet."""
        self._hold_seconds = hold_seconds
        self._held_since_s: float | None = None
        self._waiting: deque[Work] = deque()  # bounded: it counts as waiting for its tier's room

    def concerns(self, work: Work) -> bool:
        """True for a work that died so often that its next death parks it."""
        return work.starts >= self.starts_max - 1

    def add(self, work: Work) -> None:
        """It waits until nothing else runs."""
        self._waiting.append(work)

    def waiting(self, tier: Tier | None = None) -> int:
        """How many wait, of one tier or of all."""
        return sum(1 for work in self._waiting if tier in (None, work.request.tier))

    def next(self, running: int) -> Work | None:
        """The work that starts now, alone; None if there is none or others run."""
        if running or self.alone is not None or not self._waiting:
            return None
        self._held_since_s = None
        self.alone = self._waiting.popleft()
        return self.alone

    def lets_others_start(self, now_s: float) -> bool:
        """Whether a work that does not concern us may start now."""
        if self.alone is not None:
            return False
        if not self._waiting:
            self._held_since_s = None
            return True
        if self._held_since_s is None:
            self._held_since_s = now_s
        return int((now_s - self._held_since_s) / self._hold_seconds) % 2 == 1

    def forget_ended(self) -> None:
        """Lets go of works that ended, waiting or alone."""
        if self.alone is not None and self.alone.phase is Phase.ENDED:
            self.alone = None
        if any(work.phase is Phase.ENDED for work in self._waiting):
            self._waiting = deque(it for it in self._waiting if it.phase is not Phase.ENDED)
