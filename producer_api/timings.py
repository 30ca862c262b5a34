"""How long requests take, as their clients see it."""

import asyncio

from runtime.metrics import Metrics
from schemas.requests import TIERS, Tier


class Timings:
    """The API's metrics of time, looked up once; one `Timing` follows each new request."""

    def __init__(self, metrics: Metrics) -> None:
        self.accept = metrics.accept
        self.ttft = {tier: metrics.ttft.labels(tier) for tier in TIERS}
        self.per_token = {tier: metrics.per_token.labels(tier) for tier in TIERS}
        self.end_to_end = {tier: metrics.end_to_end.labels(tier) for tier in TIERS}

    def accepted(self, tier: Tier, arrived_s: float) -> "Timing":
        """A request is on the log now. `arrived_s` is the loop's time of its last byte."""
        timing = Timing(self, tier, arrived_s)
        self.accept.observe(timing.age_seconds())
        return timing


class Timing:
    """One request that was accepted here and is answered to the client that brought it."""

    def __init__(self, timings: Timings, tier: Tier, arrived_s: float) -> None:
        self._timings = timings
        self._tier = tier
        self._arrived_s = arrived_s
        self._time = asyncio.get_running_loop().time
        self._first_s: float | None = None

    def age_seconds(self) -> float:
        """Seconds since the request arrived."""
        return self._time() - self._arrived_s

    def began(self) -> None:
        """The first tokens are being given to the client."""
        self._first_s = self._time()
        self._timings.ttft[self._tier].observe(self._first_s - self._arrived_s)

    def ended(self, tokens: int) -> None:
        """The terminal is; so many tokens came before it."""
        age_s = self.age_seconds()
        self._timings.end_to_end[self._tier].observe(age_s)
        if self._first_s is not None and tokens > 1:
            streaming_s = self._arrived_s + age_s - self._first_s
            self._timings.per_token[self._tier].observe(streaming_s / (tokens - 1))
