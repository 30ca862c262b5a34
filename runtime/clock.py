"""Clocks: monotonic seconds for how long, wall milliseconds for when, and the broker's time."""

import time
from typing import Protocol

_DRIFT_MS_PER_SECOND = 0.2
"""How fast an old estimate loses to a new one: twice what a bad quartz does."""


class Clock(Protocol):
    """What time it is."""

    def monotonic_s(self) -> float:
        """Seconds that only ever rise; only differences mean something."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        ...


class SystemClock:
    """The machine's clocks. `wall_ms` is the wall time at the start, moved on by the monotonic clock.

    So a wall clock that is set while the process runs changes no deadline and no id.
    """

    def __init__(self) -> None:
        self._anchor_ms = time.time() * 1000 - time.monotonic() * 1000

    def monotonic_s(self) -> float:
        """Seconds that only ever rise."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Milliseconds since 1970, never stepping back."""
        return int(self._anchor_ms + time.monotonic() * 1000)


class BrokerClock:
    """The broker's wall time, told from the append times of acknowledged records.

    A record was appended between its sending and its ack, so the narrowest such span says best how
    far the broker's clock is from ours. Before the first observation our own clock stands in.

    `skew_seconds`: how far two clocks may differ. An ack that took longer than that says less than
    our own clock, and must not move ids to where readers do not look for them.
    """

    def __init__(self, clock: Clock | None = None, skew_seconds: float = float("inf")) -> None:
        self._clock = clock or SystemClock()
        self._offset_ms = 0.0
        self._error_ms = skew_seconds * 1000
        self._observed_s = self._clock.monotonic_s()
        self.observed = False

    def wall_ms(self) -> int:
        """Our own clock, for `sent_wall_ms` and `acked_wall_ms`."""
        return self._clock.wall_ms()

    def observe(self, append_time_ms: int, sent_wall_ms: float, acked_wall_ms: float) -> None:
        """One acknowledged append; the two wall times are readings of our clock around it."""
        if append_time_ms < 0 or acked_wall_ms < sent_wall_ms:
            return
        offset_ms = append_time_ms - (sent_wall_ms + acked_wall_ms) / 2
        # both clocks tell whole milliseconds
        error_ms = (acked_wall_ms - sent_wall_ms) / 2 + 1.0
        now_s = self._clock.monotonic_s()
        aged_ms = self._error_ms + (now_s - self._observed_s) * _DRIFT_MS_PER_SECOND
        # what the old estimate cannot explain means that a clock was set: the new one counts
        contradicts = abs(offset_ms - self._offset_ms) > error_ms + aged_ms
        if error_ms <= aged_ms or contradicts:
            self._offset_ms, self._error_ms, self._observed_s = offset_ms, error_ms, now_s
            self.observed = True

    @property
    def offset_ms(self) -> float:
        """Broker time minus our own."""
        return self._offset_ms

    def now_ms(self) -> float:
        """Milliseconds since 1970 on the broker's clock."""
        return self._clock.wall_ms() + self._offset_ms
