"""The short way out for tokens that are streamed: from the tail's own turn to the socket.

A task that waits for the next event would have to be woken for each, pass it up through all that serves a
request, and go to sleep again; that cost more than the event itself (docs/performance.md). So while it
waits, and for as long as its client takes what it is sent, events are written past it. Anything else, the
end of an answer above all, wakes it: the task decides, this only writes.
"""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

from core.stream import Visible
from producer_api.rendering import Renderer

EXTENSION = "inferlog.pieces"
"""Where a server offers `Pieces` in `scope["extensions"]`; under any other, tasks do all the writing."""


class Pieces:
    """Writes pieces of a body in chunks whose head, and at least one piece, were sent before."""

    __slots__ = ("_transport", "paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.paused = False
        """Much waits to be sent: its server says so."""

    def ready(self) -> bool:
        """False if whoever writes must wait, or nobody reads any more."""
        return not (self.paused or self._transport.is_closing())

    def write(self, piece: bytes) -> None:
        """Sends a piece, not empty, as a chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))


class Direct:
    """What a stream hands events to while its task waits. `written_s`: when it last did (monotonic)."""

    __slots__ = ("_pieces", "_renderer", "written_s")

    def __init__(self, renderer: Renderer, pieces: Pieces) -> None:
        self.written_s = 0.0
        self._renderer = renderer
        self._pieces = pieces

    def take(self, events: Iterable[Visible]) -> bool:
        """Writes them at once; False if the connection takes nothing now."""
        pieces = self._pieces
        if not pieces.ready():
            return False
        if data := self._renderer.render(events):
            pieces.write(data)
            self.written_s = monotonic()
        return True


def pieces_of(scope: Mapping[str, Any]) -> Pieces | None:
    """What the server offers for the answer to this request."""
    found: Pieces | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found
