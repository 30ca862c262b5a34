"""How often the event loops of a running stack were late, by their own metric."""

from typing import NamedTuple

from benchmarks.stack import RunningStack


class Lags(NamedTuple):
    """Looks at how late an event loop woke a timer: how many, and how many of them within 5 ms."""

    all: float
    in_time: float

    def late_share_since(self, before: "Lags") -> float:
        """Of the looks since then, the share that found it later."""
        looks = self.all - before.all
        # the two were read a moment apart
        return max(0.0, 1 - (self.in_time - before.in_time) / looks) if looks else 0.0


def lags(stack: RunningStack) -> dict[str, Lags]:
    """Of the API and of the worker, since their start."""
    name = "inferlog_event_loop_lag_seconds"
    return {
        part: Lags(
            stack.metric(part, f"{name}_count"), stack.metric(part, f"{name}_bucket", 'le="0.005"')
        )
        for part in ("api", "worker")
    }


def late_shares(before: dict[str, Lags], after: dict[str, Lags]) -> dict[str, float]:
    """Figures of a result: for each part, of the looks between, those that found its loop late."""
    return {
        f"{part}_loop_late_share": after[part].late_share_since(before[part]) for part in before
    }
