"""When what a worker believes is worth nothing any more, and how it goes on without leaving its groups."""

import time
from collections.abc import Iterable

from consumers.inference.tier import TierConsumer
from consumers.inference.worker import Worker

NONE: frozenset[str] = frozenset()


def engine_lost(worker: Worker, incarnation: str) -> None:
    """The engine died with all it ran: the log says from where each request goes on.

    A new incarnation begins: whoever counts a request's deaths by the incarnations that had started
    it counts this one as well.
    """
    worker.on_capacity(0)
    for tier in worker.tiers.values():
        tier.ownership.incarnation = incarnation
        tier.end_epochs("the engine died")


def silenced(tiers: Iterable[TierConsumer]) -> frozenset[str]:
    """Ends the epochs of tiers that have proved no membership for too long; returns their qs."""
    now_s = time.monotonic()
    silent = [tier for tier in tiers if tier.commits.is_silent(now_s)]
    if not silent:
        return NONE
    qs = frozenset(str(q) for tier in silent for q in tier.owned)
    for tier in silent:
        tier.end_epochs("no commit accepted for most of a session timeout")
    return qs
