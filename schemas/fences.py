"""Records on `fences`: who owns which request partitions, and where that became visible.

The offset of an `Acquired` record *is* the epoch: totally ordered, never reset.
`ends[p]` is an end offset of reply partition p; a partition beyond the list is not spoken of.
"""

from typing import Literal

from schemas.wire import Wire


class Acquired(Wire, frozen=True, kw_only=True, tag="acquired", tag_field="record"):
    """A: an owner takes `qs`; `ends` were taken before any of its fences was written."""

    qs: tuple[str, ...]
    incarnation: str
    ends: tuple[int, ...]
    v: Literal[1] = 1


class Fenced(Wire, frozen=True, kw_only=True, tag="fenced", tag_field="record"):
    """B: every fence of `epoch` is acknowledged; `ends` were taken after that."""

    epoch: int
    ends: tuple[int, ...]
    v: Literal[1] = 1


class Still(Wire, frozen=True, kw_only=True, tag="still", tag_field="record"):
    """Repeats A and B of a living owner, so that retention may take them."""

    epoch: int
    qs: tuple[str, ...]
    incarnation: str
    ends: tuple[int, ...]
    v: Literal[1] = 1


FenceRecord = Acquired | Fenced | Still
