"""What a worker tells the others of itself, on `workers`; and the lag it measures at that rate."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from consumers.inference.engine.replaced import ReplacedEngine
from consumers.inference.ledger_writer import LedgerWriter
from consumers.inference.tier import TierConsumer
from consumers.inference.worker import Worker
from core.work import Work
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.operations import ModelState, WorkerState
from topics.catalogue import WORKERS
from topics.ports import Log, LogError

ANNOUNCE_SECONDS = 2.0

_log = logging.getLogger(__name__)


def _version() -> str:
    try:
        return version("inferlog")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True, slots=True)
class Announced:
    """The parts of a worker that are spoken of. `now_ms` is the broker's time."""

    worker_id: str
    pool: str
    worker: Worker
    engine: ReplacedEngine
    incarnation: Callable[[], str]
    now_ms: Callable[[], float]


class Announcements:
    """`put` once at start, then `always`; `soon` after a change; `withdraw` at the end."""

    def __init__(self, it: Announced, log: Log, ledger: LedgerWriter, metrics: Metrics) -> None:
        self.draining = False
        self._withdrawn = False
        self._it = it
        self._log = log
        self._ledger = ledger
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._tokens_before = (0, asyncio.get_running_loop().time())

    def soon(self) -> None:
        """Something changed that others should not wait for."""
        self._changed.set()

    async def always(self) -> None:
        """Every two seconds and after each change, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), ANNOUNCE_SECONDS)
            self._changed.clear()
            try:
                await self.put()
            except LogError as error:
                _log.warning("the worker's state could not be announced: %s", error)

    def _state(self) -> Literal["loading", "ready", "draining"]:
        if self.draining:
            return "draining"
        return "loading" if self._it.engine.away else "ready"

    async def put(self) -> None:
        """Appends the state as it is now. Raises LogError."""
        if self._withdrawn:
            return  # else the one that waits its two seconds would take the tombstone back
        it, worker, state = self._it, self._it.worker, self._state()
        before, before_s = self._tokens_before
        self._tokens_before = worker.tokens_out, asyncio.get_running_loop().time()
        elapsed_s = max(0.1, self._tokens_before[1] - before_s)
        tiers = list(worker.tiers.values())
        record = WorkerState(
            worker_id=it.worker_id,
            incarnation=it.incarnation(),
            pool=it.pool,
            models=tuple(
                ModelState(name=m.name, context_tokens=m.context_tokens, state=state)
                for m in it.engine.models
            ),
            slots=it.engine.slots,
            running=worker.scheduler.running,
            waiting=worker.scheduler.waiting(),
            tokens_per_second=(worker.tokens_out - before) / elapsed_s,
            qs=tuple(sorted(str(q) for tier in tiers for q in tier.owned)),
            member_ids=tuple(tier.member.member_id for tier in tiers if tier.member),
            version=_version(),
            time_ms=int(it.now_ms()),
        )
        await self._append(encode(record))
        await self._measure_lag(tiers)

    async def withdraw(self) -> None:
        """A tombstone: this worker is gone. Raises LogError."""
        self._withdrawn = True
        await self._append(None)

    async def _append(self, value: bytes | None) -> None:
        acked = asyncio.get_running_loop().create_future()

        def on_acknowledged() -> None:
            if not acked.done():
                acked.set_result(None)

        key = self._it.worker_id.encode()
        self._ledger.put(WORKERS, 0, key, value, on_acknowledged=on_acknowledged)
        try:
            async with asyncio.timeout(5.0):
                await acked
        except TimeoutError:
            raise LogError("no ack in 5 s") from None

    async def _measure_lag(self, tiers: Sequence[TierConsumer]) -> None:
        """One question for all tiers: each costs the broker as much as a record."""
        lows = {q: it.tracker.low() for tier in tiers for q, it in tier.owned.items()}
        ends = await self._log.end_offsets(list(lows)) if lows else {}
        waiting, now_ms = self._waiting(), self._it.now_ms()
        for tier in tiers:
            lag = sum(ends.get(q, low) - low for q, low in lows.items() if q.topic == tier.topic)
            appended_ms = [w.append_ms for w in waiting if w.request.tier == tier.tier]
            age_s = (now_ms - min(appended_ms)) / 1000 if appended_ms else 0.0
            self._metrics.queue_depth.labels(tier.tier).set(max(0, lag))
            self._metrics.oldest_age.labels(tier.tier).set(max(0.0, age_s))

    def _waiting(self) -> list[Work]:
        return [work for work in self._it.worker.scheduler.works() if work.started_s is None]
