"""The modelled broker: `topics.memory` keeps the records, and everything that a network does is here.

A question takes time there and back, so an answer can be old when it arrives. An append that was
handed over lands later, also when its process was stopped meanwhile; one that was killed may lose
the end of what was under way. What the broker acknowledged it keeps, until retention takes it.
"""

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.checker.history import Commit, Stored
from tests.simulation.loop import EPOCH_MS, PROCESS, START_S, Process, SimLoop
from topics.fence_tail import FENCES
from topics.memory import MemoryLog
from topics.ports import LogError, Partition, Record, TopicSpec

T = TypeVar("T")

PATIENCE_S = 3.0
"""How long a client waits for a broker that is away."""


@dataclass(slots=True)
class Weather:
    """Chances per append (`slow`: per message), while there is trouble."""

    ack_lost: float = 0.0
    append_lost: float = 0.0
    append_late: float = 0.0
    refused: float = 0.0
    duplicate: float = 0.0
    commit_unknown: float = 0.0
    slow: float = 0.0

    FAULTS = ("ack_lost", "append_lost", "append_late", "refused", "duplicate")


CALM = Weather()


class Cluster:
    """One broker, the time it takes to reach it, and all it ever kept."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        self.loop = loop
        self.random = random.Random(f"{seed}/network")
        self.process = loop.process("broker")
        self.memory = MemoryLog(clock_ms=self.now_ms)
        self.weather = CALM
        self.away = False
        self.fences_fail = 0
        """So many fences on `replies` are yet to be lost, the others of their owner stored."""
        self.requests_fail = 0
        """So many request records are yet to be refused; what goes beside them is stored."""
        self.deaf: dict[int, str] = {}
        """Processes whose questions (`all`) or whose tail of `fences` alone hears nothing."""
        self.archive: list[Stored] = []
        self.commits: list[Commit] = []
        self.counts: Counter[str] = Counter()
        self._back: list[asyncio.Future[None]] = []
        self._waiters: dict[Partition, dict[int, asyncio.Future[None]]] = {}

    def now_ms(self) -> int:
        """The broker's clock."""
        return EPOCH_MS + int((self.loop.time() - START_S) * 1000)

    def latency_s(self) -> float:
        """One way."""
        draw = self.random.random()
        if draw < self.weather.slow:
            self.counts["slow message"] += 1
            return 0.02 + 0.6 * draw / self.weather.slow
        return 0.0002 + 0.003 * draw

    # --- what goes wrong

    def stop(self) -> None:
        """Away: questions wait for a while, appends wait, readers see nothing new."""
        self.counts["broker away"] += 1
        self.away = True

    def calm(self) -> None:
        """Fair weather."""
        self.weather = CALM

    def start(self) -> None:
        """Back, with everything it had."""
        self.away = False
        waiting, self._back = self._back, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        for waiters in self._waiters.values():
            self._wake(waiters)

    def trim(self, partition: Partition, before_ms: int) -> int:
        """Retention: records appended before then are gone. Returns where the partition begins."""
        old = [it for it in self.memory.records(partition) if it.time_ms < before_ms]
        if old:
            self.counts["retention"] += 1
            self.memory.trim(partition, old[-1].offset + 1)
        return self.memory._topic(partition.topic).starts[partition.index]

    def fault(self, record: Record) -> str | None:
        """What happens to the append that arrives now."""
        weather = self.weather
        if self.fences_fail and b'"record":"fence"' in (record.value or b""):
            self.fences_fail -= 1
            self.counts["fence lost"] += 1
            return "append_lost" if self.random.random() < 0.5 else "refused"
        if self.requests_fail and record.topic.startswith("requests."):
            self.requests_fail -= 1
            self.counts["request refused"] += 1
            return "refused"
        if weather is CALM:
            return None
        draw = self.random.random()
        for kind in Weather.FAULTS:
            draw -= getattr(weather, kind)
            if draw < 0:
                self.counts[kind] += 1
                return kind
        return None

    # --- questions

    async def ask(self, answer: Callable[[], T]) -> T:
        """There, the broker's answer, and back. Raises LogError if it is away for too long."""
        if self.random.random() < 0.6:
            await asyncio.sleep(self.latency_s())
        if self.hears("all") is False:
            await asyncio.sleep(0.3)
            raise LogError("no answer")
        await self.reachable()
        found = answer()
        await asyncio.sleep(self.latency_s())
        return found

    async def reachable(self, patience_s: float = PATIENCE_S) -> None:
        """Waits for a broker that is away. Raises LogError when patience ends."""
        if not self.away:
            return
        waiter = self.loop.create_future()
        self._back.append(waiter)
        timer = self.loop.call_later(patience_s, _resolve, waiter)
        await waiter
        timer.cancel()
        if self.away:
            raise LogError("the broker is away")

    async def returned(self) -> None:
        """Waits for ever."""
        while self.away:
            waiter = self.loop.create_future()
            self._back.append(waiter)
            await waiter

    def hears(self, what: str) -> bool:
        """Whether the process that asks is told anything (`all`), or of fences (`fences`)."""
        known = self.deaf.get(id(PROCESS.get(self.loop.world)))
        return known is None or known not in {what, "all"}

    # --- records

    def create(self, specs: Sequence[TopicSpec]) -> None:
        """Makes topics at once, before the world begins."""
        self.loop.run_until_complete(self.memory.create(specs))

    def store(self, unsent: Record, sender: Process) -> Record:
        """Raises AppendFailed."""
        record = self.memory.store(unsent)
        self.archive.append(Stored(len(self.archive), record, sender.name))
        loop = self.loop
        loop.digest = zlib.crc32(record.value or b"", loop.digest)
        waiters = self._waiters.get(Partition(record.topic, record.partition))
        if waiters:
            self._wake(waiters)
        return record

    def take(self, positions: Mapping[Partition, int], max_records: int) -> list[Record]:
        """What lies there: partitions in any order, now and then only a part."""
        if self.away or not positions:
            return []
        if self.deaf and FENCES in positions and not self.hears("fences"):
            return []
        wanted = sorted(positions)
        if len(wanted) > 1:
            turn = int(self.random.random() * len(wanted))
            wanted = wanted[turn:] + wanted[:turn]
        if max_records > 3 and self.random.random() < 0.15:
            max_records = 3
        return self.memory._take({p: positions[p] for p in wanted}, max_records)

    async def wait(self, partitions: Sequence[Partition], seconds: float) -> None:
        """Returns when something is appended to one of them, or after the wait."""
        waiter = self.loop.create_future()
        serial = self.loop.next_serial()
        for partition in partitions:
            self._waiters.setdefault(partition, {})[serial] = waiter
        timer = self.loop.call_later(seconds, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            for partition in partitions:
                self._waiters[partition].pop(serial, None)

    @staticmethod
    def _wake(waiters: dict[int, "asyncio.Future[None]"]) -> None:
        for waiter in waiters.values():
            _resolve(waiter)


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
