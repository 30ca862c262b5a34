"""Events of one request on their way from the tail to one client, bounded."""

import asyncio

from core.stream import Key, Visible
from schemas.replies import Tokens

EVENT_BYTES = 64
"""What an event is taken to weigh beside its text."""


class Mailbox:
    """Filled by the tail as it reads, emptied by one reader.

    Past its bound it is given up: `overflowed`, and the reader goes on from the log.
    """

    __slots__ = ("_bytes", "_bytes_max", "_events", "_events_max", "_waiter", "key", "overflowed")

    def __init__(self, key: Key, events_max: int, bytes_max: int) -> None:
        self.key = key
        self.overflowed = False
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Visible] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Visible) -> bool:
        """Takes an event, or is given up and returns False. Does not wake the reader."""
        if self.overflowed:
            return False
        self._bytes += event_bytes(event)
        self._events.append(event)
        if len(self._events) > self._events_max or self._bytes > self._bytes_max:
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """Drops what is held: all of it is on the log."""
        self.overflowed = True
        self._events.clear()
        self.wake()

    def wake(self) -> None:
        """Lets a waiting reader look: once per batch of the tail, not per event."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> list[Visible]:
        """All that has arrived."""
        events, self._events = self._events, []
        self._bytes = 0
        return events

    async def wait(self, max_wait_seconds: float) -> None:
        """Returns when woken, or after the wait."""
        loop = asyncio.get_running_loop()
        # a future and a timer: `asyncio.wait_for` would cost a task per wait
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(max_wait_seconds, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


def event_bytes(event: Visible) -> int:
    """About what an event weighs in memory, by its text."""
    return EVENT_BYTES + (len(event.text) if isinstance(event, Tokens) else 0)
