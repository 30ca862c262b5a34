"""Time to the first token of one idle stream: through the pipeline, and without it, in turn."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import PATHS, Order
from benchmarks.load_client import RawConnection, payload, verify
from benchmarks.plain_kafka import RoundTrip
from consumers.inference.engine.ports import EngineDied, Report, Run
from consumers.inference.engine.scripted import ScriptedEngine
from schemas.requests import CHAT, Body, Message

PAUSE_SECONDS = 0.01
"""Between trials, so that nothing of one is still under way in the next."""


class DirectEngine:
    """The same scripted engine, in this process."""

    def __init__(self, tokens: int) -> None:
        self._engine = ScriptedEngine()
        self._tokens = tokens
        self._run = 0
        self._first: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Ready at once."""
        await self._engine.start(self._on_reports, self._on_death)

    def _on_reports(self, _: Sequence[Report]) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _on_death(self, error: EngineDied) -> None:
        raise error

    async def first_token(self, prompt: str) -> None:
        """Returns with the first report of a run."""
        self._run += 1
        self._first = asyncio.get_running_loop().create_future()
        body = Body(messages=(Message(role="user", content=prompt),), max_tokens=self._tokens)
        self._engine.submit(Run(self._run, f"direct-{self._run}", "scripted", CHAT, body, (), "a"))
        await self._first


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """Seconds, the n-th of each list from the n-th trial."""

    pipeline: list[float]
    direct: list[float]
    round_trip: list[float]


async def measure_first_tokens(order: Order, bootstrap: str, warm_up: int) -> FirstTokens:
    """`order.requests` trials after the warm-up, three ways each, the order turned every time."""
    found = FirstTokens([], [], [])
    engine = DirectEngine(order.tokens)
    await engine.start()
    connection = RawConnection(order)

    async def through_pipeline(number: int) -> float:
        body = payload(order, number)
        begun_s = time.perf_counter()
        status, answer = await connection.ask(PATHS[order.kind], body)
        verify(order, number, status, answer)
        return connection.first_byte_s - begun_s

    async with RoundTrip(bootstrap) as bare:

        async def directly(number: int) -> float:
            begun_s = time.perf_counter()
            await engine.first_token(f"request {number}")
            return time.perf_counter() - begun_s

        async def there_and_back(_: int) -> float:
            begun_s = time.perf_counter()
            await bare.go()
            return time.perf_counter() - begun_s

        ways = [
            (through_pipeline, found.pipeline),
            (directly, found.direct),
            (there_and_back, found.round_trip),
        ]
        try:
            for number in range(-warm_up, order.requests):
                for way, times in ways if number % 2 else reversed(ways):
                    await asyncio.sleep(PAUSE_SECONDS)
                    took_s = await way(order.first + warm_up + number)
                    if number >= 0:
                        times.append(took_s)
        finally:
            await connection.close()
    return found
