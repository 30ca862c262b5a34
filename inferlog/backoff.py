"""How long to wait before a crashed process is started again. Pure: the time is handed in."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Doubles from `first_seconds` to `longest_seconds`; a long enough run forgets what was before.

    `crashes` counts those in a row, so that a caller may give up on what never came up.
    """

    first_seconds: float = 0.2
    longest_seconds: float = 15.0
    forgiven_after_seconds: float = 30.0
    crashes: int = field(default=0, init=False)

    def next_pause(self, ran_seconds: float) -> float:
        """Called after each crash with how long the process had run; returns the pause in seconds."""
        if ran_seconds >= self.forgiven_after_seconds:
            self.crashes = 0
        # the exponent is bounded, or a process that crashes for days would overflow it
        pause_s: float = self.first_seconds * 2.0 ** min(self.crashes, 30)
        self.crashes += 1
        return min(self.longest_seconds, pause_s)
