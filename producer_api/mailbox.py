"""A bounded box of visible events between a reader of the log and one client."""

from typing import Protocol

from core.stream import Key, Visible, held_bytes
from runtime.waiting import Waiting
from schemas.replies import Tokens

EVENT_BYTES = 64
"""An event that is none of tokens."""


class Taker(Protocol):
    """Takes events past whoever waits for them, or does not."""

    def hand_over(self, events: list[Visible]) -> bool: ...


class Mailbox(Waiting):
    """Events of one request as a reader accepts them; whoever takes them waits here."""

    __slots__ = ("_bytes", "_bytes_max", "_events", "_events_max", "key", "overflowed", "taker")

    def __init__(self, key: Key, events_max: int, bytes_max: int) -> None:
        super().__init__()
        self.key = key
        self.overflowed = False
        self.taker: Taker | None = None
        """Offered what is there when somebody waits; what it does not take wakes who waits."""
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Visible] | None = None  # made for what comes, and given away with it
        self._bytes = 0

    def put(self, event: Visible) -> bool:
        """Takes an event; False once the bound is passed: then the mailbox is of no more use."""
        if self.overflowed:
            return False
        self.add(event)
        if self.is_full:
            self.overflow()
            return False
        return True

    def add(self, event: Visible) -> None:
        """Takes an event, whatever the bound says: whoever calls this looks at `is_full` himself."""
        if self._events is None:
            self._events = [event]
        else:
            self._events.append(event)
        self._bytes += held_bytes(event) if type(event) is Tokens else EVENT_BYTES

    @property
    def is_full(self) -> bool:
        """True once the bound is passed."""
        return self._bytes > self._bytes_max or len(self._events or ()) > self._events_max

    @property
    def is_half_full(self) -> bool:
        """True from half of the bound on."""
        return 2 * self._bytes > self._bytes_max or 2 * len(self._events or ()) > self._events_max

    def overflow(self) -> None:
        """Gives up: whoever reads goes on from the log."""
        self.overflowed = True
        self._events = None
        self.wake()

    def wake(self) -> None:
        """Called once per batch of the reader, after its puts."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.taker is not None and self._events:
            try:
                if self.taker.hand_over(self._events):
                    self.take()
                    return
            except Exception as error:  # noqa: BLE001  it is the waiter's: the reader serves others, too
                waiter.set_exception(error)
                return
        waiter.set_result(None)

    def take(self) -> list[Visible]:
        """All that has arrived."""
        events, self._events = self._events, None
        self._bytes = 0
        return events or []
