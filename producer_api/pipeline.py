"""Everything between an HTTP handler and the log: submit, open, status, cancel, models.

Top to bottom, the way in is: claim the key (if there is one) → make the id → open the mailbox →
append the request and `Accepted` side by side → both acks → the stream.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial

from core.errors import InferlogError, Refusal
from core.limits import Limits
from core.stream import Key, Visible
from producer_api.claims import Claims
from producer_api.growth import ReplyGrowth, home_partitions
from producer_api.keyed import KeyedSubmitter
from producer_api.mailbox import Mailbox
from producer_api.placement import Placement, pool_of
from producer_api.publisher import Publisher
from producer_api.reply_router import ReplyRouter
from producer_api.retrieval import Retrieval
from producer_api.streams import ReplyStream
from producer_api.submission import Draft, IdempotencyKey, Snapshot, Submission
from producer_api.timings import Timings
from producer_api.worker_directory import ModelEntry, WorkerDirectory
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.ids import parse_request_id
from topics.catalogue import REPLIES
from topics.fence_tail import FenceTail
from topics.ports import Log, Partition

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
        self._count_accepted = cache(metrics.accepted.labels)  # of a few tiers and endpoints
        metrics.claims_live.set_function(lambda: len(self._claims.book))
        self._draining = asyncio.Event()
        self._retrieval = Retrieval(
            log, self._clock, limits, metrics, self._publisher, self._draining
        )
        self._open_streams = 0
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
        retrieval = partial(self._retrieval.start, self._fence_tail, self._placement)
        router, claims, directory = self._router, self._claims, self._directory
        for start in (router.start, claims.start, directory.start, retrieval):
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
        if not self._retrieval.reading:
            return "deletions are not being read"
        return None

    # --- in

    async def submit(
        self,
        draft: Draft,
        *,
        idempotency: IdempotencyKey | None = None,
        traceparent: str | None = None,
        followed: bool = True,
    ) -> Submission:
        """Accepts a request durably, or finds the one that holds its key. Raises Refusal.

        If nobody will read the answer here at once it is not `followed`: no mailbox is kept for it.
        """
        if self._draining.is_set():
            raise Refusal("shutting_down", "This replica is going away.", retry_after_seconds=1)
        self._check_room()
        until_s = asyncio.get_running_loop().time() + self.limits.publish_seconds
        if idempotency is not None:
            return await self._keyed.submit(draft, idempotency, traceparent, until_s)
        request_id, place = self._placement.new_id(), await self._placement.place(draft, until_s)
        return await self.publish(
            draft, request_id, place, traceparent, until_s, keyed=False, followed=followed
        )

    async def publish(
        self,
        draft: Draft,
        request_id: str,
        place: tuple[Partition, bytes],
        traceparent: str | None,
        until_s: float,
        *,
        keyed: bool,
        followed: bool = True,
    ) -> Submission:
        """Opens a mailbox, then appends. Raises Refusal like `Publisher.publish`."""
        q, record_key = place
        request = draft.request(request_id, pool_of(q.topic))
        key: Key = (draft.tenant, request_id)
        box = self._mailbox(key) if followed else None
        on_close = self._count_stream(key, box)
        ahead: list[Visible] | None = None if followed else []  # [] records nothing for the cache
        stream = self._retrieval.stream(key, box, ahead, on_close)
        try:
            await self._publisher.publish(request, q, record_key, traceparent, until_s, keyed=keyed)
        except BaseException:
            await stream.close()
            raise
        self._count_accepted(draft.tier, draft.endpoint).inc()
        if draft.arrived_s is not None:
            stream.timing = self._timings.accepted(draft.tier, draft.arrived_s)
        return Submission(request_id, "new", stream)

    def _mailbox(self, key: Key) -> Mailbox | None:
        parts = parse_request_id(key[1])
        new = self._placement.just_made(parts.time_ms)
        if parts.reply_partition not in self._router.home or not new:
            return None
        box = Mailbox(key, self.limits.mailbox_events, self.limits.mailbox_bytes)
        self._router.watch(box)
        return box

    def _check_room(self) -> None:
        if self._open_streams >= self.limits.open_streams:
            raise Refusal(
                "too_many_streams", "This replica serves all it can.", retry_after_seconds=2
            )

    # --- out

    def _count_stream(self, key: Key, box: Mailbox | None = None) -> Callable[[], None]:
        self._open_streams += 1
        self.metrics.open_streams.set(self._open_streams)

        def closed() -> None:
            self._open_streams -= 1
            self.metrics.open_streams.set(self._open_streams)
            if box is not None:
                self._router.unwatch(key)

        return closed

    async def resume(self, tenant: str, request_id: str) -> tuple[Snapshot, ReplyStream]:
        """What the log says of any request of this tenant, and its stream from the beginning on.

        Raises Refusal `not_found`, `result_expired`, `too_many_streams`, `unavailable`.
        """
        self._check_room()
        return await self._read(tenant, request_id, counted=True)

    async def open(self, tenant: str, request_id: str) -> ReplyStream:
        """The stream alone. Raises like `resume`."""
        return (await self.resume(tenant, request_id))[1]

    async def status(self, tenant: str, request_id: str) -> Snapshot:
        """What the log says of a request now. Raises Refusal."""
        snapshot, stream = await self._read(tenant, request_id, counted=False)
        await stream.close()
        return snapshot

    async def _read(
        self, tenant: str, request_id: str, *, counted: bool
    ) -> tuple[Snapshot, ReplyStream]:
        await self._growth.meet(request_id)
        key: Key = (tenant, request_id)
        known = await self._retrieval.look_up(key)
        on_close = self._count_stream(key) if counted else None
        stream = self._retrieval.stream(key, ahead=known, on_close=on_close)
        try:
            return await self._retrieval.catch_up(stream), stream
        except BaseException:
            await stream.close()
            raise

    async def delete(self, tenant: str, request_id: str) -> None:
        """Gone on every replica; aborted if it still runs. Raises Refusal."""
        await self._retrieval.delete((tenant, request_id))

    async def redeem(self, tenant: str, request_id: str, ticket: str) -> bool:
        """Uses up a ticket; False if that was done before. Raises Refusal."""
        return await self._retrieval.redeem((tenant, request_id), ticket)

    def now_ms(self) -> float:
        """Milliseconds since 1970 on the broker's clock, which all replicas share."""
        return self._clock.now_ms()

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
        if self._started:
            self._router.wake()

    async def stop(self) -> None:
        """Ends everything. Idempotent."""
        await self.drain()
        for task in self._tasks:
            task.cancel()
        if self._started:
            await self._router.close()
            await self._claims.close()
            await self._directory.close()
            await self._retrieval.close()
            await self._fence_tail.close()
        await self._publisher.close()
        await self._log.close()
