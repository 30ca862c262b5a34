"""Time as the broker sees it: append times are the only clock that all processes share."""

import time


class BrokerClock:
    """Estimates the broker's wall clock from the append times of our own records.

    An append time lies between sending and the ack, so each ack gives a window for the difference
    of the clocks; the narrowest window seen of late decides. Without any, our own clock stands in.
    """

    def __init__(self) -> None:
        self._difference_ms = 0.0
        self._width_ms = float("inf")
        self._measured_s = float("-inf")

    def observe(self, append_ms: int, sent_ms: float, acked_ms: float) -> None:
        """Takes an append time with our own wall clock before and after."""
        width = acked_ms - sent_ms
        now_s = time.monotonic()
        if width >= 0 and (width <= self._width_ms or now_s - self._measured_s > 60.0):
            self._difference_ms = append_ms - (sent_ms + acked_ms) / 2
            self._width_ms = width
            self._measured_s = now_s

    def now_ms(self) -> float:
        """Milliseconds since the epoch by the broker's clock, as well as we know."""
        return time.time() * 1000 + self._difference_ms
