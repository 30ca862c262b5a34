"""Whether an event loop was held up is told by its own metric."""

import asyncio
import time

from runtime.metrics import Metrics, watch_loop_lag

HELD_SECONDS = 0.05


async def test_a_loop_that_is_held_up_is_told() -> None:
    lags: list[float] = []
    watching = asyncio.create_task(watch_loop_lag(lags.append, 0.01))
    await asyncio.sleep(0.03)
    time.sleep(HELD_SECONDS)  # noqa: ASYNC251  this is what is to be told
    await asyncio.sleep(0.03)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert max(lags) > HELD_SECONDS / 2
    assert min(lags) >= 0


def test_five_milliseconds_are_told_apart() -> None:
    (told,) = Metrics().loop_lag.collect()
    bounds = {it.labels["le"] for it in told.samples if it.name.endswith("_bucket")}
    assert "0.005" in bounds
