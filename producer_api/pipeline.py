"""Everything between an HTTP handler and the log: submit, open, status, cancel, models.

Top to bottom, the way in is: claim the key (if there is one) → make the id → open the mailbox →
append the request and `Accepted` side by side → both acks → the stream.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from core.errors import InferlogError, Refusal
from core.limits import Limits
from core.stream import Key, Visible, is_terminal
from producer_api.claims import Claims
from producer_api.growth import ReplyGrowth, home_partitions
from producer_api.keyed import KeyedSubmitter
from producer_api.mailbox import Mailbox
from producer_api.placement import Placement, pool_of
from producer_api.publisher import Publisher, unavailable
from producer_api.reply_router import ReplyRouter
from producer_api.scan_places import ScanPlaces
from producer_api.scans import CountedFollower
from producer_api.streams import Follower, ReplyStream, result_expired
from producer_api.submission import (
    Draft,
    IdempotencyKey,
    Snapshot,
    Submission,
    info_of,
    is_expired,
    snapshot_of,
)
from producer_api.timings import Timings
from producer_api.worker_directory import ModelEntry, WorkerDirectory
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.ids import parse_request_id
from topics.catalogue import REPLIES
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError, Partition

SCAN_SECONDS = 30.0
"""A scan that takes longer is given up: the log does not answer."""

_log = logging.getLogger(__name__)


class Pipeline:
    """One per API process. `start`, then requests, then `drain`, then `stop`."""

    def __init__(
        self,
        log: Log,
        limits: Limits,
        metrics: Metrics,
        *,
        replica_index: int = 0,
        replica_count: int = 1,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed.add_done_callback(lambda it: it.cancelled() or it.exception())
        self._log = log
        self._replica = (replica_index, replica_count)
        self._clock = BrokerClock(skew_seconds=limits.clock_skew_seconds)
        self._claims = Claims(log, self._clock, limits)
        self._directory = WorkerDirectory(log, self._clock, limits)
        self._publisher = Publisher(log, self._clock, limits, metrics)
        self._timings = Timings(metrics)
        metrics.claims_live.set_function(lambda: len(self._claims.book))
        self._draining = asyncio.Event()
        self._open_streams = 0
        self._scans = ScanPlaces(limits.scans_per_tenant, metrics.log_scans_running)
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False

    async def start(self) -> None:
        """Returns when the replica is ready. Raises LogError if the log is away."""
        self._fence_tail = await FenceTail.open(
            self._log, retention_ms=int(3000 * self.limits.reply_retention_seconds)
        )
        # a restart is the one way to trust no epoch and no floor of before
        self._watch(asyncio.create_task(self._fence_tail.until_lost(), name="fences"))
        count = await self._log.partition_count(REPLIES)
        home = home_partitions(count, *self._replica)
        self._router = ReplyRouter(self._log, self._fence_tail, self.metrics, home, self._clock)
        self._placement = Placement(self._log, self._clock, self._directory, home, count)
        self._growth = ReplyGrowth(self._log, self._router, self._placement, self._replica)
        self._keyed = KeyedSubmitter(self._claims, self._placement, self, self._clock, self.metrics)
        await self._publisher.open()
        for start in (self._router.start, self._claims.start, self._directory.start):
            self._watch(await start())
        self._watch(asyncio.create_task(self._growth.follow(), name="reply-growth"))
        self._started = True

    def _watch(self, task: "asyncio.Task[None]") -> None:
        self._tasks.append(task)

        def ended(it: "asyncio.Task[None]") -> None:
            if not it.cancelled() and not self.failed.done():
                _log.critical("%s ended: %r", it.get_name(), it.exception())
                self.failed.set_exception(it.exception() or InferlogError(it.get_name()))

        task.add_done_callback(ended)

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere; None if all is well."""
        if not self._started:
            return "starting"
        if self._draining.is_set():
            return "shutting down"
        if not self._router.reading:
            return "the home partitions are not being read"
        if not self._publisher.trusted:
            return "the log takes no requests"
        if self._fence_tail.failure:
            return "fences were lost"
        if not self._claims.reading:
            return "claims are not being read"
        return None

    # --- in

    async def submit(
        self,
        draft: Draft,
        *,
        idempotency: IdempotencyKey | None = None,
        traceparent: str | None = None,
    ) -> Submission:
        """Accepts a request durably, or finds the one that holds its key. Raises Refusal."""
        if self._draining.is_set():
            raise Refusal("shutting_down", "This replica is going away.", retry_after_seconds=1)
        self._check_room()
        until_s = asyncio.get_running_loop().time() + self.limits.publish_seconds
        if idempotency is not None:
            return await self._keyed.submit(draft, idempotency, traceparent, until_s)
        request_id, place = self._placement.new_id(), await self._placement.place(draft, until_s)
        return await self.publish(draft, request_id, place, traceparent, until_s, keyed=False)

    async def publish(
        self,
        draft: Draft,
        request_id: str,
        place: tuple[Partition, bytes],
        traceparent: str | None,
        until_s: float,
        *,
        keyed: bool,
    ) -> Submission:
        """Opens a mailbox, then appends. Raises Refusal like `Publisher.publish`."""
        q, record_key = place
        request = draft.request(request_id, pool_of(q.topic))
        key: Key = (draft.tenant, request_id)
        parts = parse_request_id(request_id)
        box: Mailbox | None = None
        new = self._placement.just_made(parts.time_ms)
        if parts.reply_partition in self._router.home and new:
            box = Mailbox(key, self.limits.mailbox_events, self.limits.mailbox_bytes)
            self._router.watch(box)
        stream = self._stream(key, box)
        try:
            await self._publisher.publish(request, q, record_key, traceparent, until_s, keyed=keyed)
        except BaseException:
            await stream.close()
            raise
        self.metrics.accepted.labels(draft.tier, draft.endpoint).inc()
        if draft.arrived_s is not None:
            stream.on_delivered = self._timings.accepted(draft.tier, draft.arrived_s).delivered
        return Submission(request_id, "new", stream)

    def _check_room(self) -> None:
        if self._open_streams >= self.limits.open_streams:
            raise Refusal(
                "too_many_streams", "This replica serves all it can.", retry_after_seconds=2
            )

    # --- out

    def _stream(self, key: Key, box: Mailbox | None, after: int = 0) -> ReplyStream:
        self._open_streams += 1
        self.metrics.open_streams.set(self._open_streams)

        def closed() -> None:
            self._open_streams -= 1
            self.metrics.open_streams.set(self._open_streams)
            if box is not None:
                self._router.unwatch(key)

        return ReplyStream(
            key,
            self._draining,
            partial(self._follower, key, "follow" if box is None else "mailbox"),
            partial(self._scans.place, key[0]),
            self._is_expired,
            box,
            after,
            closed,
        )

    def _is_expired(self, request_id: str, total_seconds: float | None) -> bool:
        total_s = self.limits.total_seconds if total_seconds is None else total_seconds
        margin_s = self.limits.deadline_margin_seconds
        return is_expired(request_id, total_s, self._clock.now_ms(), margin_s)

    def _follower(self, key: Key, reason: str) -> Follower:
        skew_ms = int(self.limits.clock_skew_seconds * 1000)
        return CountedFollower(self._log, self._fence_tail, key, skew_ms, self.metrics, reason)

    async def open(self, tenant: str, request_id: str, *, after: int = 0) -> ReplyStream:
        """The answer of any request of this tenant, from position `after` on. Raises Refusal."""
        self._check_room()
        await self._growth.meet(request_id)
        self._placement.check_id(request_id, self.limits.reply_retention_seconds)
        stream = self._stream((tenant, request_id), None, after)
        try:
            async with asyncio.timeout(SCAN_SECONDS), self._scans.place(tenant):
                await stream.find()
        except (LogError, TimeoutError) as error:
            await stream.close()
            raise unavailable() from error
        except BaseException:
            await stream.close()
            raise
        return stream

    async def status(self, tenant: str, request_id: str) -> Snapshot:
        """One scan up to the end of the log as it is now. Raises Refusal."""
        await self._growth.meet(request_id)
        self._placement.check_id(request_id, self.limits.reply_retention_seconds)
        follower = self._follower((tenant, request_id), "status")
        visible: list[Visible] = []
        now_ms = self._clock.now_ms()  # of before the end that is read up to
        try:
            async with asyncio.timeout(SCAN_SECONDS), self._scans.place(tenant):
                await follower.open()
                while not follower.at_end:
                    visible += await follower.read(0.2)
                    if visible and is_terminal(visible[-1]):
                        break
        except (LogError, TimeoutError) as error:
            raise unavailable() from error
        finally:
            await follower.close()
        if follower.gap:
            raise result_expired()
        if not visible:
            raise Refusal("not_found", f"There is no request {request_id}.")
        if info_of(visible) is None and not is_terminal(visible[-1]):
            raise result_expired()  # retention took all before its first token
        margin_s = self.limits.deadline_margin_seconds
        return snapshot_of(request_id, visible, now_ms, margin_s)

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends the cancel; done when it is acknowledged. Idempotent. Raises Refusal."""
        await self._publisher.cancel(tenant, request_id, reason)

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        """Cancels in the background: what a handler calls whose client is gone."""
        self._publisher.cancel_soon(tenant, request_id)

    def models(self) -> Sequence[ModelEntry]:
        """Every model that was announced."""
        return self._directory.models()

    def check_model(self, name: str) -> ModelEntry:
        """The entry of a model. Raises Refusal `model_not_found` or `no_worker`."""
        return self._directory.check(name)

    # --- the end

    async def drain(self) -> None:
        """Refuses what is new; every open stream is told where to resume."""
        self._draining.set()

    async def stop(self) -> None:
        """Ends everything. Idempotent."""
        self._draining.set()
        for task in self._tasks:
            task.cancel()
        if self._started:
            await self._router.close()
            await self._claims.close()
            await self._directory.close()
            await self._fence_tail.close()
        await self._publisher.close()
        await self._log.close()
