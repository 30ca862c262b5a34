"""Waiting for somebody else on the same loop, for a limited time, very often."""

import asyncio

_EARLY_SECONDS = 0.001
"""A timer may fire up to the resolution of its clock too early."""


class Waiting:
    """One may wait at a time, others wake. Close it: it holds a timer.

    No task per wait and no timer either: the timer outlives the wait it was set for, since what is
    waited for comes quickly, and timers are dear.
    """

    __slots__ = ("_loop", "_timer", "_until_s", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_s = 0.0

    async def wait(self, max_wait_seconds: float) -> None:
        """Returns when woken, or after the wait."""
        loop = self._loop
        self._until_s = loop.time() + max_wait_seconds
        if self._timer is None or self._timer.when() > self._until_s:
            self._set_timer()
        waiter = self._waiter = loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:  # else somebody else waits by now
                self._waiter = None

    def wake(self) -> None:
        """Lets go of whoever waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._until_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until_s - _EARLY_SECONDS:
            self._set_timer()
        else:
            self._waiter.set_result(None)

    def close(self) -> None:
        """Lets go of the timer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
