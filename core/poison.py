"""How often a request died of being run, as the log tells it, and what follows from that.

A start that ended with the death of its worker or of its engine counts. It does not count if it was
`Released`, or if its incarnation took partitions over again after that epoch had ended: then it
lived. (A worker whose engine died goes on as a new incarnation.) A start that brought a new token
makes all deaths before it forgotten, as the request is past the place where it died; its own death is
then the first one at the new place.

A start says its number, one more than the deaths that its owner knew of; so many deaths it can stand for.

At `starts_max` - 1 deaths a request runs alone (`core.solitude`), so that only a death of its own
making can bring it to `starts_max`, where it is parked.
"""

from bisect import insort
from dataclasses import dataclass
from typing import Protocol

from schemas.operations import Start
from schemas.replies import Started

HISTORY_MAX = 32
"""Starts kept of one request. More than `starts_max` of them cannot all have died in a row."""


class Owners(Protocol):
    """What `fences` says of the owners behind the epochs (`core.epochs.FenceLog`)."""

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
        """How often it died since it last came further than where it had died before.

        Several owners may run it at once, all but one of them without knowing that they are owners no
        more, and all may be killed at once. They said the same number, and are one death: none of
        them ran it alone because of what had happened to the others.
        """
        counted = 0
        for start in self.starts:
            if start.progressed:
                counted = 0
            if not (start.released or owners.lived_on(start.said.q, start.epoch)):
                counted = max(counted, min(counted + 1, start.said.starts))
        return counted

    def history(self) -> tuple[Start, ...]:
        """As a dead letter tells it."""
        return tuple(
            Start(epoch=it.epoch, starts=it.said.starts, worker=it.said.worker)
            for it in self.starts
        )
