"""How often a request died of being run, as the log tells it, and what follows from that.

A start that ended with the death of its worker or of its engine counts. It does not count if it was
`Released`, or if its owner took partitions over again after that epoch had ended: then it lived. A
start that brought a new token makes all deaths before it forgotten, as the request is past the
place where it died; its own death is then the first one at the new place.

At `starts_max` - 1 deaths a request runs alone (`core.solitude`), so that only a death of its own
making can bring it to `starts_max`, where it is parked.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from core.stream import Origin
from core.work import Work
from schemas.operations import Start
from schemas.replies import Started

HISTORY_MAX = 32
"""Starts kept of one request. More than `starts_max` of them cannot all have died in a row."""

ENGINE_DEATHS_MAX = 10_000


class Owners(Protocol):
    """What `fences` says of the owners behind the epochs (`core.epochs.FenceLog`)."""

    def incarnation(self, epoch: int) -> str | None:
        """Who owned under this epoch; None if it is not known (any more)."""
        ...

    def lived_on(self, q: str, epoch: int) -> bool:
        """True if the owner of `q` under `epoch` took partitions over after that epoch's end."""
        ...


@dataclass(slots=True)
class SeenStart:
    """A `Started` on the log. `progressed`: tokens of it became visible."""

    epoch: int
    said: Started
    progressed: bool = False
    released: bool = False

    def starts_if_alive(self) -> int:
        """What the next `Started` says if this start did not die."""
        return 1 if self.progressed else self.said.starts


class Life:
    """The starts of one origin by rising epoch; of each epoch in log order."""

    __slots__ = ("starts",)

    def __init__(self) -> None:
        self.starts: list[SeenStart] = []

    def started(self, event: Started) -> None:
        """Takes a `Started`, visible or not: even one behind a fence was run."""
        for known in self.starts:
            same = known.epoch == event.epoch and known.said.counts == event.counts
            if same and known.said.starts == event.starts:
                return  # stored twice
        insort(self.starts, SeenStart(event.epoch, event), key=lambda start: start.epoch)
        if len(self.starts) > HISTORY_MAX:
            del self.starts[0]

    def progressed(self, epoch: int) -> None:
        """Tokens of this epoch became visible."""
        start = self._latest(epoch)
        if start is not None:
            start.progressed = True

    def released(self, epoch: int) -> None:
        """The latest start of this epoch was handed over cleanly."""
        start = self._latest(epoch)
        if start is not None:
            start.released = True

    def _latest(self, epoch: int) -> SeenStart | None:
        return next((it for it in reversed(self.starts) if it.epoch == epoch), None)

    def deaths(self, owners: Owners) -> int:
        """How often it died since it last came further than where it had died before."""
        counted = 0
        for start, following in pairwise([*self.starts, None]):
            assert start is not None
            if start.progressed:
                counted = 0
            counted += _died(start, following, owners)
        return counted

    def history(self) -> tuple[Start, ...]:
        """As a dead letter tells it."""
        return tuple(
            Start(epoch=it.epoch, starts=it.said.starts, worker=it.said.worker)
            for it in self.starts
        )


def _died(start: SeenStart, following: SeenStart | None, owners: Owners) -> bool:
    if start.released:
        return False
    if not owners.lived_on(start.said.q, start.epoch):
        return True
    if following is None:
        return False
    # It lived. Whether its engine did, the worker itself said when it started the request again.
    mine = owners.incarnation(following.epoch) == owners.incarnation(start.epoch)
    return mine and following.said.starts > start.starts_if_alive()


def deaths_if_it_died(work: Work) -> int:
    """The deaths of a running work if its engine is lost now."""
    return 1 if sum(work.counts) > work.given() else work.starts + 1


class EngineDeaths:
    """Requests whose engine died while their worker lived on.

    `fences` then says that the worker lived, and so that nobody died. The worker remembers until it
    starts such a request again; from then on its `Started` tells everybody.
    """

    def __init__(self) -> None:
        self._origins: OrderedDict[Origin, None] = OrderedDict()

    def note(self, works: Iterable[Work]) -> None:
        """These were running when the engine died."""
        for work in works:
            self._origins[work.q, work.offset] = None
        while len(self._origins) > ENGINE_DEATHS_MAX:
            self._origins.popitem(last=False)

    def of(self, origin: Origin) -> int:
        """1 if the latest start of it ended so, else 0."""
        return 1 if origin in self._origins else 0

    def forget(self, origin: Origin) -> None:
        """It is started again."""
        self._origins.pop(origin, None)
