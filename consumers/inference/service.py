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
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from consumers.inference.accounts import Accounts
from consumers.inference.cancels import CancelTail
from consumers.inference.engine.options import make_engine
from consumers.inference.engine.ports import Engine, EngineDied, Report
from consumers.inference.late_copies import LateCopies
from consumers.inference.ledger_writer import LedgerWriter
from consumers.inference.measures import Measures
from consumers.inference.replies import ReplyWriter
from consumers.inference.settings import WorkerSettings
from consumers.inference.tier import TierConsumer
from consumers.inference.worker import Worker
from core.errors import InferlogError
from core.work import Work
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.operations import ModelState, WorkerState
from topics.catalogue import REPLIES, WORKERS
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError

ANNOUNCE_SECONDS = 2.0

_log = logging.getLogger(__name__)


def _version() -> str:
    try:
        return version("inferlog")
    except PackageNotFoundError:
        return "0"


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
        self.incarnation = secrets.token_hex(8)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed.add_done_callback(lambda it: it.cancelled() or it.exception())
        self.worker_id = settings.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self._log: Log = log or settings.cluster.open(self.worker_id)
        self._engine = engine or make_engine(
            settings.engine, settings.model, settings.engine_option
        )
        self._clock = BrokerClock()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self._draining = False
        self._tokens_before = 0
        self.worker: Worker | None = None
        self._tiers: list[TierConsumer] = []

    async def start(self) -> None:
        """Returns when the worker has joined its groups. Raises InferlogError with the reason."""
        limits = self.settings.limits
        await self._engine.start(self._on_reports, self._on_engine_death)
        self._fence_tail = await FenceTail.open(
            self._log, retention_ms=int(3000 * limits.reply_retention_seconds)
        )
        self._writer = ReplyWriter(self._log, self._on_publish_failure)
        self._ledger = LedgerWriter(self._log, self._clock)
        skew_ms = int(limits.clock_skew_seconds * 1000)
        self._late_copies = LateCopies(self._log, self._fence_tail, skew_ms)
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
            Measures(self.metrics),
            limits,
        )
        worker.reply_partitions = await self._log.partition_count(REPLIES)
        self._cancels = CancelTail(self._log, worker.on_cancel)
        self._watch(await self._cancels.start())
        worker.cover = self._cancels.cover
        await self._announce("ready")
        self._watch(asyncio.create_task(worker.tick(), name="tick"))
        self._watch(asyncio.create_task(self._announce_always(), name="announce"))
        for tier in self.settings.tiers:
            consumer = TierConsumer(
                self._log,
                self.settings.pool,
                tier,
                worker,
                (self.incarnation, self._fence_tail, self._writer),
                session_timeout_seconds=self.settings.session_timeout_seconds,
                span_offsets=limits.span_offsets,
                skew_ms=skew_ms,
            )
            worker.tiers[tier] = consumer
            self._tiers.append(consumer)
        for consumer in self._tiers:
            for task in await consumer.start():
                self._watch(task)

    def owns_all(self) -> bool:
        """True when every tier has its assignment and owns it: new requests start at once."""
        return bool(self._tiers) and all(tier.lag_ready() for tier in self._tiers)

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

    def _on_engine_death(self, error: EngineDied) -> None:
        _log.critical("the engine died: %s", error)
        if not self.failed.done():
            self.failed.set_exception(error)

    def _on_publish_failure(self) -> None:
        if self.worker is not None:
            self.worker.publish_failed()

    # --- telling others

    async def _announce_always(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            try:
                await self._announce("draining" if self._draining else "ready")
            except LogError as error:
                _log.warning("the worker's state could not be announced: %s", error)

    async def _announce(self, state: Literal["ready", "draining"]) -> None:
        worker = self.worker
        assert worker is not None
        tokens = worker.tokens_out
        rate = (tokens - self._tokens_before) / ANNOUNCE_SECONDS
        self._tokens_before = tokens
        record = WorkerState(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            pool=self.settings.pool,
            models=tuple(
                ModelState(name=m.name, context_tokens=m.context_tokens, state=state)
                for m in self._engine.models
            ),
            slots=self._engine.slots,
            running=worker.scheduler.running,
            waiting=worker.scheduler.waiting(),
            tokens_per_second=rate,
            qs=tuple(sorted(str(q) for tier in self._tiers for q in tier.owned)),
            member_ids=tuple(tier.member.member_id for tier in self._tiers if tier.member),
            version=_version(),
            time_ms=int(self._clock.now_ms()),
        )
        await self._put_state(encode(record))
        for tier in self._tiers:
            await self._measure_lag(tier)

    async def _put_state(self, value: bytes | None) -> None:
        acked = asyncio.get_running_loop().create_future()

        def on_acknowledged() -> None:
            if not acked.done():
                acked.set_result(None)

        key = self.worker_id.encode()
        self._ledger.put(WORKERS, 0, key, value, on_acknowledged=on_acknowledged)
        try:
            async with asyncio.timeout(5.0):
                await acked
        except TimeoutError:
            raise LogError("no ack in 5 s") from None

    async def _measure_lag(self, tier: TierConsumer) -> None:
        if not tier.owned:
            return
        ends = await self._log.end_offsets(list(tier.owned))
        lag = sum(ends[q] - it.tracker.low() for q, it in tier.owned.items() if q in ends)
        self.metrics.queue_depth.labels(tier.tier).set(max(0, lag))
        oldest = [w.arrived_s for w in self._works() if w.request.tier == tier.tier]
        age_s = asyncio.get_running_loop().time() - min(oldest) if oldest else 0.0
        self.metrics.oldest_age.labels(tier.tier).set(age_s)

    def _works(self) -> list[Work]:
        assert self.worker is not None
        return [work for work in self.worker.scheduler.works() if work.started_s is None]

    # --- the end

    async def stop(self, *, drain: bool = True) -> None:
        """Drains within the setting's limit, commits, leaves, and ends what was started."""
        if self._stopped:
            return
        self._stopped = True
        self._draining = True
        if self.worker is not None:
            await self.worker.drain(self.settings.drain_seconds if drain else 0.0)
            try:
                await self._writer.settled(5.0)
                await self._ledger.settled(3.0)
                await self._put_state(None)
            except LogError as error:
                _log.warning("not all could be flushed: %s", error)
        await asyncio.gather(*(tier.close() for tier in self._tiers), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop()
        if self.worker is not None:
            await self._late_copies.close()
            await self._cancels.close()
            await self._writer.close()
            await self._ledger.close()
            await self._fence_tail.close()
        await self._log.close()
