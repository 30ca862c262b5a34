"""Who holds an idempotency key: claims judged in log order, by append times alone.

A claim wins if no claim of its key, won or lost, has a life that still runs at its append time. One
that lost is void for ever. Every replica that reads from two longest lives back judges alike.
"""

from dataclasses import dataclass

from schemas.operations import Claim

ClaimKey = tuple[str, str]
"""(tenant, idempotency key)"""


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its verdict. `ends_ms` is when its life ends, in broker time."""

    claim: Claim
    append_ms: int
    won: bool

    @property
    def ends_ms(self) -> float:
        """Broker time at which the key is free again, as far as this claim is concerned."""
        return self.append_ms + self.claim.life_seconds * 1000


class ClaimBook:
    """The fold of one replica's view of `claims`. Holds claims whose life still runs."""

    def __init__(self) -> None:
        self._by_key: dict[ClaimKey, list[Judged]] = {}
        self._per_tenant: dict[str, int] = {}

    def feed(self, append_ms: int, claim: Claim) -> Judged:
        """Takes the next claim of its partition and judges it."""
        key = (claim.tenant, claim.key)
        before = [it for it in self._by_key.get(key, ()) if it.ends_ms > append_ms]
        judged = Judged(claim, append_ms, won=not before)
        self._count(claim.tenant, 1 + len(before) - len(self._by_key.get(key, ())))
        self._by_key[key] = [*before, judged]
        return judged

    def live(self, tenant: str, key: str, now_ms: float) -> Judged | None:
        """The winner among the claims whose life runs, else any of them, else None."""
        alive = [it for it in self._by_key.get((tenant, key), ()) if it.ends_ms > now_ms]
        return next((it for it in alive if it.won), alive[0] if alive else None)

    def winner(self, tenant: str, key: str) -> Judged | None:
        """The claim that won the key last; None if it lies out of view."""
        won = [it for it in self._by_key.get((tenant, key), ()) if it.won]
        return won[-1] if won else None

    def count(self, tenant: str) -> int:
        """How many claims of a tenant are held."""
        return self._per_tenant.get(tenant, 0)

    def prune(self, now_ms: float) -> None:
        """Forgets claims whose life has ended."""
        for key, judged in list(self._by_key.items()):
            alive = [it for it in judged if it.ends_ms > now_ms]
            if len(alive) != len(judged):
                self._count(key[0], len(alive) - len(judged))
                if alive:
                    self._by_key[key] = alive
                else:
                    del self._by_key[key]

    def _count(self, tenant: str, change: int) -> None:
        count = self._per_tenant.get(tenant, 0) + change
        if count > 0:
            self._per_tenant[tenant] = count
        else:
            self._per_tenant.pop(tenant, None)
