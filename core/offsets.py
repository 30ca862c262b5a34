"""Out-of-order completion of one request partition, and what may be committed of it.

Tracking an offset returns the only thing that can complete it: a late result of an old assignment
holds an old handle and changes nothing. Only what was really read is tracked, so a gap in the
offsets is the same as done.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Handle:
    """A tracked offset. `spoken_at` is a (reply partition, position) at or before its first event."""

    offset: int
    done: bool = False
    spoken_at: tuple[int, int] | None = None

    def complete(self) -> None:
        """Marks the offset done. Idempotent."""
        self.done = True


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """A snapshot that may be committed: the offset, and from where a successor folds `replies`.

    `positions[p]` lies at or before the first event of any offset at or beyond `offset`.
    """

    offset: int
    positions: tuple[int, ...]


class OffsetTracker:
    """Offsets of one partition under one ownership, tracked in rising order."""

    def __init__(self, committed: int) -> None:
        self.committed = committed
        self.next = committed
        self._open: deque[Handle] = deque()

    def track(self, offset: int) -> Handle:
        """Tracks the next offset. Raises ValueError if it does not lie beyond all before it."""
        if offset < self.next:
            raise ValueError(f"offset {offset} was tracked before (next is {self.next})")
        handle = Handle(offset)
        self._open.append(handle)
        self.next = offset + 1
        return handle

    def low(self) -> int:
        """The lowest incomplete offset: all before it are complete."""
        while self._open and self._open[0].done:
            self._open.popleft()
        return self._open[0].offset if self._open else self.next

    def incomplete(self) -> int:
        """How many tracked offsets are not complete."""
        return sum(1 for handle in self._open if not handle.done)

    def commit_point(
        self, reached: Mapping[int, int], found: Mapping[int, tuple[int, int]]
    ) -> CommitPoint:
        """What to commit now.

        `reached[p]`: how far reply partition p has come: what has not begun yet will be said there or behind.
        `found[offset]`: (reply partition, position) where the fold met the first event of an offset
        that an earlier owner had started, whether it was picked up again since or not.
        """
        low = self.low()
        positions = dict(reached)
        spoken = [handle.spoken_at for handle in self._open if handle.spoken_at is not None]
        spoken += [at for offset, at in found.items() if offset >= low]
        for partition, position in spoken:
            positions[partition] = min(positions.get(partition, position), position)
        return CommitPoint(low, tuple(positions[p] for p in sorted(positions)))


def encode_positions(positions: tuple[int, ...]) -> str:
    """Commit metadata: version 1, then one position per reply partition."""
    return "1:" + ",".join(map(str, positions))


def decode_positions(metadata: str) -> tuple[int, ...] | None:
    """The inverse; None for metadata that is absent or not ours (a committed offset set by hand)."""
    version, _, numbers = metadata.partition(":")
    parts = numbers.split(",")
    if version != "1" or not all(part.isdecimal() for part in parts):
        return None
    return tuple(map(int, parts))
