"""Which requests were cancelled, as far as a bounded memory tells."""

from collections import OrderedDict

from core.stream import Key


class CancelledIds:
    """The latest cancels, at most `size_max` of them; then the oldest is forgotten.

    They come as they are appended, or later, looked up backwards: what is looked up counts as older than
    all that is known, so that a long look back takes no place from what was just heard.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, key: Key) -> None:
        """One that was just heard."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._size_max:
            self._keys.popitem(last=False)

    def add_earlier(self, key: Key) -> None:
        """One that was looked up."""
        if key not in self._keys and len(self._keys) < self._size_max:
            self._keys[key] = None
            self._keys.move_to_end(key, last=False)
