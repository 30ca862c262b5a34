"""Who holds an idempotency key: claims judged in log order, by append times alone.

A claim wins if no claim of its key, won or lost, has a life that still runs at its append time. One
that lost is void for ever. Every replica that reads from two longest lives back judges alike: what
it cannot see has ended before the oldest claim that can still matter was appended.
"""

import heapq
from dataclasses import dataclass

from core.limits import Limits
from schemas.operations import Claim

ClaimKey = tuple[str, str]
"""(tenant, idempotency key)"""


def claim_life_seconds(limits: Limits, total_seconds: float | None = None) -> float:
    """How long a claim keeps its key: longer than its request, of that total deadline, can run.

    Without a deadline: the longest life there is, by which `claims` is kept and read back.
    """
    total_s = limits.total_seconds if total_seconds is None else total_seconds
    return max(limits.claim_life_seconds, 2 * total_s + limits.deadline_margin_seconds)


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its verdict. `append_ms` is its append time, on the broker's clock."""

    claim: Claim
    append_ms: int
    won: bool

    @property
    def ends_ms(self) -> float:
        """Broker time at which the key is free again, as far as this claim is concerned."""
        return self.append_ms + self.claim.life_seconds * 1000


class ClaimBook:
    """The fold of one replica's view of `claims`, partition by partition in log order.

    Bounded by the claims whose life still runs: `prune` forgets the others.
    """

    def __init__(self) -> None:
        self._by_key: dict[ClaimKey, list[Judged]] = {}
        self._per_tenant: dict[str, int] = {}
        self._ends: list[tuple[float, ClaimKey]] = []
        self._held = 0

    def feed(self, append_ms: int, claim: Claim) -> Judged:
        """Takes the next claim of its partition and judges it."""
        key = (claim.tenant, claim.key)
        running = self._forget_ended(key, append_ms)
        judged = Judged(claim, append_ms, won=not running)
        self._by_key[key] = [*running, judged]
        self._count(claim.tenant, 1)
        heapq.heappush(self._ends, (judged.ends_ms, key))
        return judged

    def live(self, tenant: str, key: str, now_ms: float) -> Judged | None:
        """The claim that keeps a key taken: the winner if its life runs, else one that lost.

        None: the key is free. One that lost without a winner in sight means that the answer to the
        key can no longer be found.
        """
        running = [it for it in self._by_key.get((tenant, key), ()) if it.ends_ms > now_ms]
        return next((it for it in running if it.won), running[0] if running else None)

    def winner(self, tenant: str, key: str) -> Judged | None:
        """The winner among the claims that were running when the last one of the key was judged."""
        return next((it for it in self._by_key.get((tenant, key), ()) if it.won), None)

    def count(self, tenant: str) -> int:
        """How many claims of a tenant are held."""
        return self._per_tenant.get(tenant, 0)

    def __len__(self) -> int:
        """How many claims are held in all."""
        return self._held

    def has_ended(self, now_ms: float) -> bool:
        """Whether `prune` would forget anything."""
        return bool(self._ends) and self._ends[0][0] <= now_ms

    def prune(self, now_ms: float) -> None:
        """Forgets claims whose life has ended."""
        while self._ends and self._ends[0][0] <= now_ms:
            _, key = heapq.heappop(self._ends)
            self._forget_ended(key, now_ms)

    def _forget_ended(self, key: ClaimKey, now_ms: float) -> list[Judged]:
        known = self._by_key.get(key)
        if known is None:
            return []
        running = [it for it in known if it.ends_ms > now_ms]
        if len(running) != len(known):
            self._count(key[0], len(running) - len(known))
            if running:
                self._by_key[key] = running
            else:
                del self._by_key[key]
        return running

    def _count(self, tenant: str, change: int) -> None:
        self._held += change
        count = self._per_tenant.get(tenant, 0) + change
        if count > 0:
            self._per_tenant[tenant] = count
        else:
            self._per_tenant.pop(tenant, None)
