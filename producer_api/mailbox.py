"""A bounded box of visible events between a reader of the log and one client."""

import asyncio

from core.stream import Key, Visible
from schemas.replies import Tokens


class Mailbox:
    """Events of one request as the tail accepts them."""

    def __init__(self, key: Key, events_max: int, bytes_max: int) -> None:
        self.key = key
        self.overflowed = False
        self._waiter: asyncio.Future[None] | None = None
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Visible] = []
        self._bytes = 0

    def put(self, event: Visible) -> bool:
        """Takes an event; False once the bound is passed: then the mailbox is of no more use."""
        if not self.overflowed:
            self._events.append(event)
            self._bytes += 64 + (len(event.text) if isinstance(event, Tokens) else 0)
            if len(self._events) > self._events_max or self._bytes > self._bytes_max:
                self.overflow()
        return not self.overflowed

    def overflow(self) -> None:
        """Gives up: whoever reads goes on from the log."""
        self.overflowed = True
        self._events.clear()
        self.wake()

    def wake(self) -> None:
        """Called once per batch of the tail, after its puts."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, max_wait_seconds: float) -> None:
        """Returns when woken, or after the wait. A future and a timer: no task per wait."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(max_wait_seconds, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def take(self) -> list[Visible]:
        """All that has arrived."""
        events, self._events = self._events, []
        self._bytes = 0
        return events
