"""The open-loop load generator: a process of its own that keeps its schedule.

Arrivals are a Poisson process of a given rate and seed, fixed before the first is sent; a late answer
delays none of them. Each request takes an idle keep-alive connection, or opens one more. Times count
from when a request was *due*, so that waiting which a slow server causes is not omitted; how much later
than due each was really sent is the generator's own fault, and reported.

A line of JSON (`Schedule`) on stdin, a line of JSON (`Kept`) on stdout.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field

import uvloop

from benchmarks.load import PATHS, Kind, Order
from benchmarks.load_client import RawConnection, payload, verify

OPEN_MAX = 4_000
"""Requests under way at once: beyond it the server is not keeping up, and arrivals are given up."""
REFUSED = (429, 503)
TIMER_SECONDS = 0.001
"""What the loop's timers can tell apart. Waiting more exactly would take a core from the servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`rate` requests a second on average, for so long."""

    port: int
    key: str
    kind: Kind
    tokens: int
    rate: float
    seconds: float
    seed: int
    first: int = 0


@dataclass(slots=True, kw_only=True)
class Kept:
    """Seconds, in the order of arrival; `given_up` arrivals were not sent, `refused` ones got 429 or 503."""

    due: int = 0
    given_up: int = 0
    refused: int = 0
    late_seconds: list[float] = field(default_factory=list)
    first_byte_seconds: list[float] = field(default_factory=list)
    whole_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def arrivals(schedule: Schedule) -> list[float]:
    """Seconds from the start at which requests are due: the same for the same seed."""
    chance = random.Random(schedule.seed)
    due_s, times = 0.0, []
    while (due_s := due_s + chance.expovariate(schedule.rate)) < schedule.seconds:
        times.append(due_s)
    return times


class Generator:
    """One schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self._it = schedule
        self._order = Order(
            port=schedule.port,
            key=schedule.key,
            kind=schedule.kind,
            requests=1,
            clients=1,
            tokens=schedule.tokens,
        )
        self._idle: list[RawConnection] = []
        self._open: set[asyncio.Task[None]] = set()
        self.kept = Kept()

    async def _one(self, number: int, body: bytes, due_s: float) -> None:
        connection = self._idle.pop() if self._idle else RawConnection(self._order)
        self.kept.late_seconds.append(time.perf_counter() - due_s)
        status, answer = await connection.ask(PATHS[self._it.kind], body)
        ended_s = time.perf_counter()
        if status in REFUSED:
            self.kept.refused += 1
            self._idle.append(connection)
            return
        verify(self._order, number, status, answer)
        self.kept.first_byte_seconds.append(connection.first_byte_s - due_s)
        self.kept.whole_seconds.append(ended_s - due_s)
        self._idle.append(connection)

    async def run(self) -> Kept:
        """Returns when all are answered. Raises what a request raised."""
        times = arrivals(self._it)
        bodies = [payload(self._order, self._it.first + i) for i in range(len(times))]
        self.kept.due = len(times)
        cpu_s, start_s = time.process_time(), time.perf_counter() + 0.05
        for i, (offset_s, body) in enumerate(zip(times, bodies, strict=True)):
            due_s = start_s + offset_s
            while (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(max(wait_s, TIMER_SECONDS))
            if len(self._open) >= OPEN_MAX:
                self.kept.given_up += 1
                continue
            task = asyncio.create_task(self._one(self._it.first + i, body, due_s))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            if i % 64 == 0:
                await asyncio.sleep(0)  # answers are read even when arrivals are behind
        await asyncio.gather(*self._open)
        self.kept.seconds = time.perf_counter() - start_s
        self.kept.cpu_seconds = time.process_time() - cpu_s
        for connection in self._idle:
            await connection.close()
        return self.kept


async def obey() -> None:
    """Reads schedules until stdin ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        kept = await Generator(Schedule(**json.loads(line))).run()
        print(json.dumps(asdict(kept)), flush=True)


if __name__ == "__main__":
    uvloop.run(obey())
