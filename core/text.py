"""Stop strings in a stream of text: what may be shown, what is withheld, and where it ends."""

from collections.abc import Sequence


class StopScanner:
    """Finds the first stop string in text that arrives in pieces, however it is cut.

    The stop string that is complete first ends the text; of several that are complete at the same
    character, the longest. Neither it nor anything behind it is ever visible, so text that may be
    its beginning is withheld until the next piece decides. `held_text` is text that an earlier run
    had produced and not shown; the next `feed` looks at it first.
    """

    __slots__ = ("_held", "_longest", "_starts", "_stops", "stopped")

    def __init__(self, stops: Sequence[str], held_text: str = "") -> None:
        # an empty stop string would end every answer before its first character
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._held = held_text
        self.stopped = False

    @property
    def held_text(self) -> str:
        """Text that was fed and is not visible yet."""
        return self._held

    def feed(self, text: str, final: bool = False) -> tuple[str, bool]:
        """Takes the next piece; returns what became visible, and whether a stop string was met.

        With `final` no more text comes, so nothing is withheld. After a stop all text is ignored.
        """
        if self.stopped:
            return "", True
        if self._held:
            text = self._held + text
            self._held = ""
        if not self._stops:
            return text, False
        end = self._cut(text)
        if end is not None:
            self.stopped = True
            return text[:end], True
        if final:
            return text, False
        keep_from = self._possible_stop(text)
        self._held = text[keep_from:]
        return text[:keep_from], False

    def _cut(self, text: str) -> int | None:
        """Where the stop string that is complete first begins."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                found = (start + len(stop), start)
                if best is None or found < best:
                    best = found
        return None if best is None else best[1]

    def _possible_stop(self, text: str) -> int:
        """Where the longest end of `text` begins that may be the beginning of a stop string."""
        length = len(text)
        for start in range(max(0, length - self._longest + 1), length):
            if text[start] in self._starts:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return length
