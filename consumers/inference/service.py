"""One worker process, from start to finish: the wiring, and the order of things.

Start: engine first (a worker that cannot run must not join a group), then the log, then the tiers.
End: stop reading, finish or release what runs, flush the replies, commit, leave the groups.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence

from consumers.inference.accounts import Accounts
from consumers.inference.announcements import Announced, Announcements
from consumers.inference.cancels import CancelTail
from consumers.inference.engine.options import make_engine
from consumers.inference.engine.ports import Engine, EngineDied, Report
from consumers.inference.engine.replaced import ReplacedEngine
from consumers.inference.failover import engine_lost, silenced
from consumers.inference.growth import ReplyGrowth
from consumers.inference.identity import client_id
from consumers.inference.late_copies import LateCopies
from consumers.inference.ledger_writer import LedgerWriter
from consumers.inference.measures import Measures
from consumers.inference.replies import ReplyWriter
from consumers.inference.settings import WorkerSettings
from consumers.inference.standing import Standing
from consumers.inference.tier import TierConsumer
from consumers.inference.worker import Worker
from core.errors import InferlogError
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError

_log = logging.getLogger(__name__)


def _new_incarnation() -> str:
    return secrets.token_hex(8)


class InferenceService:
    """`start`, wait on `failed` (or a signal), then `stop`. `stop` is idempotent."""

    def __init__(
        self,
        settings: WorkerSettings,
        log: Log | None = None,
        engine: Engine | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.incarnation = _new_incarnation()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed.add_done_callback(lambda it: it.cancelled() or it.exception())
        self.worker_id = settings.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self._log: Log = log or settings.cluster.open(
            client_id(self.worker_id, os.getpid()), self.metrics
        )
        self._engine = ReplacedEngine(
            engine or self._make_engine(),
            self._make_engine,
            self._on_engine_lost,
            self._on_engine_back,
        )
        self._clock = BrokerClock(skew_seconds=settings.limits.clock_skew_seconds)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self._announcements: Announcements | None = None
        self.worker: Worker | None = None
        self._tiers: list[TierConsumer] = []

    def _make_engine(self) -> Engine:
        it = self.settings
        return make_engine(it.engine, it.model, it.engine_option, it.limits)

    async def start(self) -> None:
        """Returns when the worker has joined its groups. Raises InferlogError with the reason."""
        limits = self.settings.limits
        await self._engine.start(self._on_reports, self._on_engine_death)
        self._fence_tail = await FenceTail.open(
            self._log, retention_ms=int(3000 * limits.reply_retention_seconds)
        )
        self._writer = ReplyWriter(self._log, self._on_publish_failure, self.metrics)
        self._ledger = LedgerWriter(self._log, self._clock)
        skew_ms = int(limits.clock_skew_seconds * 1000)
        self._late_copies = LateCopies(self._log, self._fence_tail, skew_ms)
        self._cancels = CancelTail(self._log, skew_ms)
        accounts = Accounts(self._log, self._ledger, self._clock.now_ms)
        self._watch(await self._ledger.start())
        await accounts.start()
        await self._writer.reopen()
        worker = self.worker = Worker(
            self.worker_id,
            self._engine,
            self._writer,
            accounts,
            self._late_copies,
            self._cancels,
            Measures(self.metrics, accounts.age_seconds),
            limits,
        )
        self._writer.silenced = lambda: silenced(worker.tiers.values())
        worker.growth = self._growth = ReplyGrowth(self._log, self._tiers)
        for task in await self._cancels.start(worker.on_cancel):
            self._watch(task)
        announced = Announced(
            self.worker_id,
            self.settings.pool,
            worker,
            self._engine,
            lambda: self.incarnation,
            self._clock.now_ms,
        )
        telling = Announcements(announced, self._log, self._ledger, self.metrics)
        self._announcements = telling
        await telling.put()
        self._watch(asyncio.create_task(worker.tick(), name="tick"))
        self._watch(asyncio.create_task(self._writer.follow_ends(), name="reply-ends"))
        self._watch(asyncio.create_task(telling.always(), name="announce"))
        for tier in self.settings.tiers:
            consumer = TierConsumer(
                self._log,
                self.settings.pool,
                tier,
                worker,
                (self.incarnation, self._fence_tail, self._writer),
                session_timeout_seconds=self.settings.session_timeout_seconds,
                span_offsets=limits.span_offsets,
            )
            worker.tiers[tier] = consumer
            self._tiers.append(consumer)
        for consumer in self._tiers:
            for task in await consumer.start():
                self._watch(task)
        owning = [consumer.owned for consumer in self._tiers]
        standing = Standing(self._fence_tail, self._ledger, owning, limits.reply_retention_seconds)
        self._watch(asyncio.create_task(standing.repeat(), name="still"))

    def owns_all(self) -> bool:
        """True when every tier owns what it was assigned and an engine runs: requests start at once."""
        owned = bool(self._tiers) and all(tier.lag_ready() for tier in self._tiers)
        return owned and not self._engine.away

    # --- what may go wrong

    def _watch(self, task: "asyncio.Task[None]") -> None:
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        """A loop that ends takes the process down: the log redelivers, a restart starts clean."""
        if not task.cancelled() and not self.failed.done() and not self._stopped:
            error = task.exception()
            _log.critical("%s ended: %r", task.get_name(), error, exc_info=error)
            self.failed.set_exception(error or InferlogError(f"{task.get_name()} ended"))

    def _on_reports(self, reports: Sequence[Report]) -> None:
        if self.worker is not None:
            self.worker.on_reports(reports)

    def _on_engine_lost(self, _: EngineDied) -> None:
        self.incarnation = _new_incarnation()
        if self.worker is not None:
            engine_lost(self.worker, self.incarnation)
        self._announce_soon()

    def _on_engine_back(self) -> None:
        self.metrics.engine_restarts.inc()
        if self.worker is not None:
            self.worker.on_capacity(self._engine.slots)
        self._announce_soon()

    def _announce_soon(self) -> None:
        if self._announcements is not None:
            self._announcements.soon()

    def _on_engine_death(self, error: EngineDied) -> None:
        _log.critical("%s", error)
        if self.worker is not None:
            self.worker.on_capacity(0)  # what ran is dead, and not handed over
        if not self.failed.done():
            self.failed.set_exception(error)

    def _on_publish_failure(self) -> None:
        if self.worker is not None:
            self.worker.publish_failed()

    # --- the end

    async def stop(self, *, drain: bool = True) -> None:
        """Drains within the setting's limit, commits, leaves, and ends what was started."""
        if self._stopped:
            return
        self._stopped = True
        if self.worker is not None:
            if self._announcements is not None:
                self._announcements.draining = True
            await self.worker.drain(self.settings.drain_seconds if drain else 0.0)
            try:
                await self._writer.settled(5.0)
                await self._ledger.settled(3.0)
                if self._announcements is not None:
                    await self._announcements.withdraw()
            except LogError as error:
                _log.warning("not all could be flushed: %s", error)
        await asyncio.gather(*(tier.close() for tier in self._tiers), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop()
        if self.worker is not None:
            await self._late_copies.close()
            await self._growth.close()
            await self._cancels.close()
            await self._writer.close()
            await self._ledger.close()
            await self._fence_tail.close()
        await self._log.close()
