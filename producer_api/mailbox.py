"""A bounded box of visible events between a reader of the log and one client."""

import asyncio
from collections.abc import Callable, Sequence

from core.stream import Key, Visible, held_bytes
from schemas.replies import Tokens

_EARLY_SECONDS = 0.001
"""A timer may fire up to the resolution of its clock too early."""


class Mailbox:
    """Events of one request as a reader accepts them. Close it: it holds a timer."""

    def __init__(self, key: Key, events_max: int, bytes_max: int) -> None:
        self.key = key
        self.overflowed = False
        self.hand_over: Callable[[Sequence[Visible]], bool] | None = None
        """Shown what is there when somebody waits; False: it was not taken, and wakes who waits."""
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_s = 0.0
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Visible] = []
        self._bytes = 0

    def put(self, event: Visible) -> bool:
        """Takes an event; False once the bound is passed: then the mailbox is of no more use."""
        if not self.overflowed:
            self.add(event)
            if self.is_full:
                self.overflow()
        return not self.overflowed

    def add(self, event: Visible) -> None:
        """Takes an event, whatever the bound says: whoever calls this looks at `is_full` himself."""
        self._events.append(event)
        self._bytes += 64 + (held_bytes(event) if isinstance(event, Tokens) else 0)

    @property
    def is_full(self) -> bool:
        """True once the bound is passed."""
        return len(self._events) > self._events_max or self._bytes > self._bytes_max

    @property
    def is_half_full(self) -> bool:
        """True from half of the bound on."""
        return 2 * len(self._events) > self._events_max or 2 * self._bytes > self._bytes_max

    def overflow(self) -> None:
        """Gives up: whoever reads goes on from the log."""
        self.overflowed = True
        self._events.clear()
        self.wake()

    def wake(self) -> None:
        """Called once per batch of the reader, after its puts."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.hand_over is not None and self._events:
            try:
                if self.hand_over(self._events):
                    self.take()
                    return
            except Exception as error:  # noqa: BLE001  it is the waiter's: the reader serves others, too
                waiter.set_exception(error)
                return
        waiter.set_result(None)

    async def wait(self, max_wait_seconds: float) -> None:
        """Returns when woken, or after the wait. A future: no task per wait, and no timer either."""
        loop = self._loop
        self._until_s = loop.time() + max_wait_seconds
        if self._timer is None or self._timer.when() > self._until_s:
            self._set_timer()
        waiter = self._waiter = loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._until_s, self._ring)

    def _ring(self) -> None:
        """The timer outlives the wait it was set for: tokens come quickly, and timers are dear."""
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._until_s - _EARLY_SECONDS:
            self._set_timer()
        else:
            self.wake()

    def close(self) -> None:
        """Lets go of the timer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self) -> list[Visible]:
        """All that has arrived."""
        events, self._events = self._events, []
        self._bytes = 0
        return events
