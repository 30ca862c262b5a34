"""Everything between an HTTP handler and the log: submit, open, status, cancel, models.

Top to bottom, the way in is: claim the key (if there is one) → make the id → open the mailbox →
append the request and `Accepted` side by side → both acks → the stream.
"""

import asyncio
import contextlib
import logging
import secrets
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.errors import InferlogError, Refusal
from core.idempotency import Judged
from core.limits import Limits
from core.stream import Key, Visible, is_terminal
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.envelope import request_headers
from schemas.ids import RANDOM_BITS, make_request_id, parse_request_id
from schemas.operations import Claim, Control
from schemas.replies import Accepted, Cancelled, Expired, Failed, Finished, Started
from schemas.requests import Body, Deadlines, Endpoint, Request, RequestInfo, Tier
from topics.catalogue import CONTROL, REPLIES, request_topic
from topics.fence_tail import FenceTail
from topics.ports import (
    Appender,
    AppendFailed,
    Log,
    LogError,
    Partition,
    RecordTooLarge,
    parse_partition,
)

from producer_api.claims import Claims
from producer_api.reply_router import ReplyRouter
from producer_api.streams import Follower, Mailbox, ReplyStream
from producer_api.worker_directory import ModelEntry, WorkerDirectory

PREFIX_CHARS = 256
PREFIX_BUCKETS = 4

_log = logging.getLogger(__name__)

State = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked request that has no id yet."""

    tenant: str
    tier: Tier
    model: str
    endpoint: Endpoint
    body: Body
    deadlines: Deadlines = field(default_factory=Deadlines)
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The client's key, the SHA-256 of the canonical payload, and whether to join a running one."""

    key: str
    fingerprint: str
    attach: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted request, or the one that holds its key; `stream` must be closed."""

    request_id: str
    outcome: Literal["new", "attached", "replayed"]
    stream: ReplyStream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the log said of a request when it was asked."""

    info: RequestInfo
    state: State
    visible: list[Visible]


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
        self._clock = BrokerClock()
        self._claims = Claims(log, self._clock, limits)
        self._directory = WorkerDirectory(log, self._clock, limits)
        self._appender: Appender | None = None
        self._opening = asyncio.Lock()
        self._draining = asyncio.Event()
        self._open_streams = 0
        self._next_home = 0
        self._scans: dict[str, asyncio.Semaphore] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._later: set[asyncio.Task[None]] = set()
        self._started = False

    async def start(self) -> None:
        """Returns when the replica is ready. Raises LogError if the log is away."""
        self._fence_tail = await FenceTail.open(
            self._log, retention_ms=int(3000 * self.limits.reply_retention_seconds)
        )
        count = self._reply_partitions = await self._log.partition_count(REPLIES)
        index, replicas = self._replica
        home = [p for p in range(count) if p % replicas == index] or [index % count]
        self._router = ReplyRouter(self._log, self._fence_tail, self.metrics, home)
        await self._open_appender()
        for starting in (self._router.start(), self._claims.start(), self._directory.start()):
            self._watch(await starting)
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
        if self._fence_tail.failure:
            return "fences were lost"
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
        if self._open_streams >= self.limits.open_streams:
            raise Refusal(
                "too_many_streams", "This replica serves all it can.", retry_after_seconds=2
            )
        if idempotency is None:
            request_id, q = await self._new_id(draft), await self._place(draft)
            return await self._publish(draft, request_id, q, traceparent, keyed=False)
        return await self._submit_keyed(draft, idempotency, traceparent)

    async def _new_id(self, draft: Draft) -> str:  # noqa: ARG002  the home decides, not the draft
        home = self._router.home
        self._next_home = (self._next_home + 1) % len(home)
        random_62 = secrets.randbits(RANDOM_BITS)
        return make_request_id(int(self._clock.now_ms()), home[self._next_home], random_62)

    async def _place(self, draft: Draft) -> tuple[Partition, bytes]:
        """The request partition and key: the same beginning goes to the same worker's cache."""
        messages = draft.body.messages
        beginning = (messages[0].content if messages else draft.body.prompt or "")[:PREFIX_CHARS]
        bucket = zlib.crc32(beginning.encode(errors="replace")) % PREFIX_BUCKETS
        key = f"{draft.tenant}:{bucket}".encode()
        topic = request_topic(self._directory.check(draft.model).pool, draft.tier)
        try:
            await self._log.partition_count(topic)
        except LogError as error:
            raise self._unavailable() from error
        return Partition(topic, self._log.partition_of_key(topic, key)), key

    async def _publish(
        self,
        draft: Draft,
        request_id: str,
        place: tuple[Partition, bytes],
        traceparent: str | None,
        *,
        keyed: bool,
    ) -> Submission:
        q, record_key = place
        request = Request(
            id=request_id,
            tenant=draft.tenant,
            tier=draft.tier,
            model=draft.model,
            endpoint=draft.endpoint,
            body=draft.body,
            pool=q.topic.split(".")[1],
            deadlines=draft.deadlines,
            stream=draft.stream,
            include_usage=draft.include_usage,
        )
        key: Key = (draft.tenant, request_id)
        parts = parse_request_id(request_id)
        box: Mailbox | None = None
        if parts.reply_partition in self._router.home and time_close(parts.time_ms, self._clock):
            box = Mailbox(key, self.limits.mailbox_events, self.limits.mailbox_bytes)
            self._router.watch(box)
        stream = self._stream(key, box)
        accepted = Accepted(id=request_id, tenant=draft.tenant, info=request.info())
        headers = request_headers(request_id, draft.tenant, parts.time_ms, traceparent)
        try:
            appender = self._appender or await self._open_appender()
            sent_ms = time.time() * 1000
            acks = (
                appender.append(q.topic, q.index, encode(request), key=record_key, headers=headers),
                appender.append(REPLIES, parts.reply_partition, encode(accepted)),
            )
            async with asyncio.timeout(self.limits.publish_seconds):
                appended = await acks[0]
                await acks[1]
        except BaseException as error:
            await stream.close()
            raise self._publish_failed(error, key, keyed=keyed) from error
        if appended.time_ms:
            acked_ms = time.time() * 1000
            self._clock.observe(appended.time_ms, sent_ms, acked_ms)
            self.metrics.publish.labels("requests").observe((acked_ms - sent_ms) / 1000)
        self.metrics.accepted.labels(draft.tier, draft.endpoint).inc()
        return Submission(request_id, "new", stream)

    def _publish_failed(self, error: BaseException, key: Key, *, keyed: bool) -> BaseException:
        if isinstance(error, RecordTooLarge):
            return Refusal("request_too_large", "The request is too large for a record.")
        if not isinstance(error, LogError | TimeoutError):
            return error
        _log.warning(
            "a request could not be published: %s", error or "no ack", extra={"request_id": key[1]}
        )
        self._drop_appender()
        if isinstance(error, AppendFailed):
            return self._unavailable()
        if not keyed:
            # it may run for nobody: cancelled as soon as the log can be reached
            self.cancel_soon(*key)
        return Refusal(
            "outcome_unknown",
            "The log did not answer in time: the request may or may not run. "
            "With an Idempotency-Key a retry would find it.",
            retry_after_seconds=2,
        )

    def _unavailable(self) -> Refusal:
        return Refusal("unavailable", "The log cannot be reached.", retry_after_seconds=2)

    async def _open_appender(self) -> Appender:
        async with self._opening:
            if self._appender is None:
                self._appender = await self._log.appender()
            return self._appender

    def _drop_appender(self) -> None:
        appender, self._appender = self._appender, None
        if appender is not None:
            task: asyncio.Task[None] = asyncio.ensure_future(appender.close(0.0))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    # --- idempotency

    async def _submit_keyed(
        self, draft: Draft, idempotency: IdempotencyKey, traceparent: str | None
    ) -> Submission:
        live = self._claims.book.live(draft.tenant, idempotency.key, self._clock.now_ms())
        if live is None:
            q, record_key = await self._place(draft)
            claim = Claim(
                tenant=draft.tenant,
                key=idempotency.key,
                fingerprint=idempotency.fingerprint,
                request_id=await self._new_id(draft),
                q=str(q),
                life_seconds=max(
                    self.limits.claim_life_seconds, 2 * draft.deadlines.total_seconds
                ),
            )
            judged = await self._claims.claim(claim)
            if judged.won:
                self.metrics.claims.labels("won").inc()
                return await self._publish(
                    draft, claim.request_id, (q, record_key), traceparent, keyed=True
                )
            live = self._claims.book.winner(draft.tenant, idempotency.key)
        if live is None or not live.won:
            self.metrics.claims.labels("out_of_view").inc()
            raise Refusal("result_expired", "The answer to this key is no longer kept.")
        if live.claim.fingerprint != idempotency.fingerprint:
            self.metrics.claims.labels("conflict").inc()
            raise Refusal(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another payload: use a new key.",
            )
        return await self._join(draft, idempotency, live, traceparent)

    async def _join(
        self, draft: Draft, wanted: IdempotencyKey, live: Judged, traceparent: str | None
    ) -> Submission:
        request_id = live.claim.request_id
        age_s = (self._clock.now_ms() - live.append_ms) / 1000
        try:
            snapshot = await self.status(draft.tenant, request_id)
        except Refusal as refusal:
            if refusal.code != "not_found":
                raise
            if self.limits.claim_lease_seconds < age_s < draft.deadlines.total_seconds:
                # its replica died between claim and publish: publish it under the same id
                self.metrics.claims.labels("taken_over").inc()
                q = parse_partition(live.claim.q)
                return await self._publish(
                    draft, request_id, (q, draft.tenant.encode()), traceparent, keyed=True
                )
            if age_s > 2 * draft.deadlines.total_seconds:
                raise Refusal("result_expired", "The answer is no longer kept.") from None
            snapshot = None
        if snapshot is not None and snapshot.state not in ("queued", "in_progress"):
            self.metrics.claims.labels("replayed").inc()
            return Submission(request_id, "replayed", await self.open(draft.tenant, request_id))
        if snapshot is not None and wanted.attach:
            self.metrics.claims.labels("attached").inc()
            return Submission(request_id, "attached", await self.open(draft.tenant, request_id))
        self.metrics.claims.labels("in_progress").inc()
        raise Refusal(
            "idempotency_in_progress",
            "A request with this Idempotency-Key is running. Retry later, or send "
            "`Prefer: inferlog=attach` to join it.",
            retry_after_seconds=1,
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

        return ReplyStream(key, self._draining, lambda: self._follower(key), box, after, closed)

    def _follower(self, key: Key) -> Follower:
        skew_ms = int(self.limits.clock_skew_seconds * 1000)
        return Follower(self._log, self._fence_tail, key, skew_ms)

    async def open(self, tenant: str, request_id: str, *, after: int = 0) -> ReplyStream:
        """The answer of any request of this tenant, from position `after` on. Raises Refusal."""
        self._check_id(request_id)
        stream = self._stream((tenant, request_id), None, after)
        try:
            await stream.find()
        except BaseException:
            await stream.close()
            raise
        return stream

    def _check_id(self, request_id: str) -> None:
        try:
            parts = parse_request_id(request_id)
        except ValueError:
            raise Refusal("not_found", "There is no such request.") from None
        if parts.reply_partition >= self._reply_partitions:
            raise Refusal("not_found", "There is no such request.")
        kept_ms = self.limits.reply_retention_seconds * 1000
        if parts.time_ms < self._clock.now_ms() - kept_ms:
            raise Refusal("result_expired", "This answer is no longer kept.")

    async def status(self, tenant: str, request_id: str) -> Snapshot:
        """One scan up to the end of the log as it is now. Raises Refusal."""
        self._check_id(request_id)
        places = self._scans.setdefault(tenant, asyncio.Semaphore(self.limits.scans_per_tenant))
        async with places:
            follower = self._follower((tenant, request_id))
            visible: list[Visible] = []
            try:
                await follower.open()
                while not follower.at_end:
                    visible += await follower.read(0.2)
                    if visible and is_terminal(visible[-1]):
                        break
            except LogError as error:
                raise self._unavailable() from error
            finally:
                await follower.close()
        if follower.gap:
            raise Refusal("result_expired", "The beginning of this answer is no longer kept.")
        if not visible:
            raise Refusal("not_found", f"There is no request {request_id}.")
        return self._snapshot(request_id, visible)

    def _snapshot(self, request_id: str, visible: list[Visible]) -> Snapshot:
        info = next(it.info for it in visible if isinstance(it, Accepted | Started))
        last = visible[-1]
        state: State = "in_progress"
        if isinstance(last, Finished):
            state = "completed"
        elif isinstance(last, Failed):
            state = "failed"
        elif isinstance(last, Cancelled):
            state = "cancelled"
        elif isinstance(last, Expired):
            state = "expired"
        elif isinstance(last, Accepted):
            state = "queued"
        if state in ("queued", "in_progress"):
            age_s = (self._clock.now_ms() - parse_request_id(request_id).time_ms) / 1000
            if age_s > 2 * info.total_seconds + self.limits.deadline_margin_seconds:
                state = "expired"
        return Snapshot(info, state, visible)

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends the cancel; done when it is acknowledged. Idempotent. Raises Refusal."""
        control = Control(kind="cancel", tenant=tenant, request_id=request_id, reason=reason)
        try:
            appender = self._appender or await self._open_appender()
            async with asyncio.timeout(self.limits.publish_seconds):
                await appender.append(CONTROL, 0, encode(control))
        except (LogError, TimeoutError) as error:
            self._drop_appender()
            raise self._unavailable() from error

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        """Cancels in the background: what a handler calls whose client is gone."""
        task = asyncio.create_task(self._cancel_later((tenant, request_id)), name="cancel-soon")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _cancel_later(self, key: Key) -> None:
        until_s = time.monotonic() + self.limits.total_seconds
        while time.monotonic() < until_s:
            try:
                await self.cancel(*key, "nobody waits for it")
                return
            except Refusal:
                await asyncio.sleep(1.0)

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
        if self._later:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await asyncio.gather(*self._later, return_exceptions=True)
        for task in [*self._tasks, *self._later]:
            task.cancel()
        if self._started:
            await self._router.close()
            await self._claims.close()
            await self._directory.close()
            await self._fence_tail.close()
        if self._appender is not None:
            await self._appender.close()
            self._appender = None
        await self._log.close()


def time_close(id_ms: int, clock: BrokerClock) -> bool:
    """True for an id made just now: nothing can have been said of it before we watch."""
    return abs(clock.now_ms() - id_ms) < 1000
