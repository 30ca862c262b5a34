"""What the `fences` topic says: who owned which request partition, and since where it shows.

Workers, tails and followers all fold `fences` with this class. The epoch of an owner is the offset
of its `Acquired` record ("A"); `Fenced` ("B") says from where on all its fences lie behind a reader.
"""

from dataclasses import dataclass

from schemas.fences import Acquired, Fenced, FenceRecord, Still


@dataclass(slots=True)
class Ownership:
    """One A, with its B once it is known. `ends[p]` speaks of reply partition p."""

    epoch: int
    qs: tuple[str, ...]
    incarnation: str
    ends_before: tuple[int, ...]
    ends_after: tuple[int, ...] | None
    time_ms: int

    def fenced_by(self, partition: int, position: int) -> bool:
        """True if all its fences in that partition certainly lie before `position`."""
        after = self.ends_after
        return after is not None and partition < len(after) and after[partition] <= position


class FenceLog:
    """The fold of `fences`, in offset order. Bounded: `prune` forgets what retention took."""

    def __init__(self) -> None:
        self._by_epoch: dict[int, Ownership] = {}
        self._highest: dict[str, Ownership] = {}
        self._lived_on: dict[tuple[str, int], bool] = {}

    def feed(self, offset: int, time_ms: int, record: FenceRecord) -> None:
        """Takes the record at `offset`, appended at `time_ms` (broker time)."""
        if isinstance(record, Acquired):
            self._add(Ownership(offset, record.qs, record.incarnation, record.ends, None, time_ms))
        elif isinstance(record, Fenced):
            known = self._by_epoch.get(record.epoch)
            if known is not None and known.ends_after is None:
                known.ends_after = record.ends
        else:
            known = self._by_epoch.get(record.epoch)
            if known is None:
                # its A and B are gone: whatever they fenced off is gone from `replies` as well
                self._add(
                    Ownership(
                        record.epoch,
                        record.qs,
                        record.incarnation,
                        record.ends,
                        record.ends,
                        time_ms,
                    )
                )
            else:
                known.time_ms = time_ms
                known.ends_after = known.ends_after or record.ends

    def _add(self, owner: Ownership) -> None:
        self._by_epoch[owner.epoch] = owner
        self._lived_on.clear()  # whoever was not heard of again may have been now
        for q in owner.qs:
            best = self._highest.get(q)
            if best is None or owner.epoch > best.epoch:
                self._highest[q] = owner

    def highest(self, q: str) -> int:
        """The highest epoch of `q`; -1 if nobody ever owned it."""
        owner = self._highest.get(q)
        return owner.epoch if owner else -1

    def owner(self, q: str) -> Ownership | None:
        """The ownership with the highest epoch of `q`."""
        return self._highest.get(q)

    def still(self, epoch: int, qs: tuple[str, ...]) -> Still | None:
        """What the owner of `epoch`, which still owns `qs`, repeats; None before its B is known."""
        owner = self._by_epoch.get(epoch)
        if owner is None or owner.ends_after is None:
            return None
        return Still(epoch=epoch, qs=qs, incarnation=owner.incarnation, ends=owner.ends_after)

    def lived_on(self, q: str, epoch: int) -> bool:
        """True if the owner of `q` under `epoch` took partitions over after that epoch had ended.

        An A of the time before proves nothing: other partitions come and go while it owns `q`.
        """
        known = self._lived_on.get((q, epoch))
        if known is None:
            # asked for each suspect of a takeover: the answer is kept until the next A
            known = self._lived_on[q, epoch] = self._find_later(q, epoch)
        return known

    def _find_later(self, q: str, epoch: int) -> bool:
        owner_then = self._by_epoch.get(epoch)
        if owner_then is None:
            return False
        later = [it for it in self._by_epoch.values() if it.epoch > epoch]
        ended = min((it.epoch for it in later if q in it.qs), default=None)
        return ended is not None and any(
            it.epoch >= ended and it.incarnation == owner_then.incarnation for it in later
        )

    def late_start(self, partition: int, position: int) -> tuple[dict[str, int], int]:
        """Where a reader of `partition` that wants to know all from `position` on must begin.

        Returns the floors it begins with (highest epoch per q whose fences certainly lie before
        `position`), and the position to read from: that of the earliest A above a floor, whose
        fence may lie anywhere from there on, once or twice.
        """
        floors: dict[str, int] = {}
        for owner in self._by_epoch.values():
            if owner.fenced_by(partition, position):
                for q in owner.qs:
                    floors[q] = max(floors.get(q, -1), owner.epoch)
        start = position
        for owner in self._by_epoch.values():
            speaks = partition < len(owner.ends_before)
            above = any(owner.epoch > floors.get(q, -1) for q in owner.qs)
            if speaks and above:
                start = min(start, owner.ends_before[partition])
        return floors, start

    def prune(self, before_ms: int) -> None:
        """Forgets owners last heard of before `before_ms`, except the highest of each q."""
        for epoch, owner in list(self._by_epoch.items()):
            if owner.time_ms < before_ms and all(self._highest[q] is not owner for q in owner.qs):
                del self._by_epoch[epoch]
                self._lived_on.clear()
