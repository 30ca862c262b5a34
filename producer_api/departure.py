"""The leaving of a client, told by its connection: no request needs a task that waits for it."""

from collections.abc import Callable, Mapping
from typing import Any

EXTENSION = "inferlog.departure"
"""Where a server offers a `Departure` in `scope["extensions"]`; under any other, `receive` tells it."""


class Departure:
    """One connection's. A callback is kept until it is forgotten, or the client has left.

    What is not read from tells nothing: `resume_reading` ends a pause that a large body may have left.
    """

    def __init__(self, resume_reading: Callable[[], None]) -> None:
        self._resume_reading = resume_reading
        self._gone = False
        self._told: set[Callable[[], None]] = set()

    def tell(self, callback: Callable[[], None]) -> None:
        """Calls it when the client leaves; at once if it has."""
        if self._gone:
            callback()
            return
        self._told.add(callback)
        self._resume_reading()

    def forget(self, callback: Callable[[], None]) -> None:
        """It is not called any more. Idempotent."""
        self._told.discard(callback)

    def happen(self) -> None:
        """The client has left."""
        self._gone = True
        told, self._told = self._told, set()
        for callback in told:
            callback()


def departure_of(scope: Mapping[str, Any]) -> Departure | None:
    """What the server offers for this request."""
    found: Departure | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found
