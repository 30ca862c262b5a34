"""Appending requests and cancels: one appender, both acks, and what a failure means."""

import asyncio
import logging
from collections.abc import Awaitable

from core.errors import Refusal
from core.limits import Limits
from core.stream import Key
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import RECORD_BYTES_MAX, encode
from schemas.envelope import request_headers
from schemas.ids import parse_request_id
from schemas.operations import Control
from schemas.replies import Accepted
from schemas.requests import Request
from topics.catalogue import CONTROL, REPLIES
from topics.ports import Appended, Appender, AppendFailed, Log, LogError, Partition, RecordTooLarge

REQUEST_BYTES_MAX = RECORD_BYTES_MAX - 4096
"""Headers and key need room beside it."""
CANCELS_AT_ONCE = 256
RETRY_SECONDS = 0.5
TROUBLE_SECONDS = 5.0
"""So long after a failure requests should go elsewhere; then one of them has to find out."""

_log = logging.getLogger(__name__)


def unavailable() -> Refusal:
    """503: nothing was appended."""
    return Refusal("unavailable", "The log cannot be reached.", retry_after_seconds=2)


def too_large() -> Refusal:
    """413: nothing was appended."""
    return Refusal(
        "request_too_large",
        f"This request makes a record of more than {REQUEST_BYTES_MAX} bytes: shorten it.",
    )


def request_value(request: Request) -> bytes:
    """The record's value. Raises Refusal `request_too_large`."""
    value = encode(request)
    if len(value) > REQUEST_BYTES_MAX:
        raise too_large()
    return value


class Publisher:
    """Used by one pipeline; `open` at start, `close` at the end."""

    def __init__(self, log: Log, clock: BrokerClock, limits: Limits, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._observe_publish = metrics.publish.labels("requests").observe
        self._appender: Appender | None = None
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Future[None]] = set()
        self._cancels: dict[Key, None] = {}
        self._cancelling: asyncio.Task[None] | None = None
        self._failed_ms: int | None = None

    @property
    def trusted(self) -> bool:
        """False for a while after the log failed to take a request, unless it took one since.

        Also asked from other threads.
        """
        failed_ms = self._failed_ms
        return failed_ms is None or self._clock.wall_ms() - failed_ms >= 1000 * TROUBLE_SECONDS

    async def open(self) -> Appender:
        """The appender; a new one after a failure. Raises LogError."""
        async with self._opening:
            if self._appender is None:
                self._appender = await self._log.appender()
            return self._appender

    async def publish(
        self,
        request: Request,
        q: Partition,
        record_key: bytes,
        traceparent: str | None,
        until_s: float,
        *,
        keyed: bool,
    ) -> None:
        """Appends the request and `Accepted` side by side; returns after both acks.

        It ends by `until_s` (the loop's time), whatever the log does.

        Under a key one after the other: a retry that met `Accepted` alone would join a request that
        nobody will ever run.

        Raises Refusal: `request_too_large`, `unavailable`, or `outcome_unknown`; then a request
        without a key is cancelled as soon as the log can be reached.
        """
        parts = parse_request_id(request.id)
        accepted = Accepted(id=request.id, tenant=request.tenant, info=request.info())
        headers = request_headers(
            request.id,
            request.tenant,
            parts.time_ms,
            traceparent,
            encode(accepted.info),
            request.deadlines.own_start_seconds(),
        )
        value = request_value(request)
        appender: Appender | None = None
        appended: Appended | None = None
        ack: Awaitable[Appended] | None = None
        accepted_ack: Awaitable[Appended] | None = None
        try:
            async with asyncio.timeout_at(until_s):
                appender = self._appender or await self.open()
                sent_ms = self._clock.wall_ms()
                ack = appender.append(q.topic, q.index, value, key=record_key, headers=headers)
                if keyed:
                    appended = await ack
                    await appender.append(REPLIES, parts.reply_partition, encode(accepted))
                else:
                    accepted_ack = appender.append(REPLIES, parts.reply_partition, encode(accepted))
                    appended = await ack
                    await accepted_ack
        except (LogError, TimeoutError) as error:
            key = (request.tenant, request.id)
            if not isinstance(error, RecordTooLarge):
                self._failed_ms = self._clock.wall_ms()
            if appender is None:
                raise unavailable() from error
            self._drop(appender)
            raise self._failed(error, key, accepted=appended is not None, keyed=keyed) from error
        except asyncio.CancelledError:
            if appender is not None and not keyed:
                # nobody knows its id, so nobody else could ever cancel it
                self.cancel_soon(request.tenant, request.id)
            raise
        finally:
            # an ack that failed holds its error, that this frame, and this frame the body: no such cycle
            ack = accepted_ack = None
        self._failed_ms = None
        if appended.time_ms:
            acked_ms = self._clock.wall_ms()
            self._clock.observe(appended.time_ms, sent_ms, acked_ms)
            self._observe_publish((acked_ms - sent_ms) / 1000)

    def _failed(self, error: Exception, key: Key, *, accepted: bool, keyed: bool) -> Refusal:
        """`accepted`: the request itself is on the log, what failed is only what goes beside it."""
        _log.warning(
            "a request could not be published: %s", error or "no ack", extra={"request_id": key[1]}
        )
        unknown = accepted or not isinstance(error, AppendFailed)
        outcome = "unknown" if unknown else "refused"
        self._metrics.publish_failures.labels("requests", outcome).inc()
        if not unknown:
            return too_large() if isinstance(error, RecordTooLarge) else unavailable()
        if not keyed:
            self.cancel_soon(*key)
        return Refusal(
            "outcome_unknown",
            "The log did not answer in time: the request may or may not run. "
            "With an Idempotency-Key a retry would find it.",
            retry_after_seconds=2,
        )

    def _drop(self, appender: Appender) -> None:
        """After a failure order is no longer certain: the next append makes a new appender."""
        if self._appender is not appender:
            return  # another append that failed with it has seen to it
        self._appender = None
        closing = asyncio.ensure_future(appender.close(0.0))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends the cancel; done when it is acknowledged. Idempotent. Raises Refusal."""
        await self.tell(_cancel((tenant, request_id), reason))

    async def tell(self, control: Control) -> None:
        """Appends to `control`; done when it is acknowledged. Raises Refusal `unavailable`."""
        appender: Appender | None = None
        try:
            async with asyncio.timeout(self._limits.publish_seconds):
                appender = self._appender or await self.open()
                await appender.append(CONTROL, 0, encode(control))
        except (LogError, TimeoutError) as error:
            if appender is not None:
                self._drop(appender)
            raise unavailable() from error

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        """Cancels in the background, as soon as the log takes it: for a client that is gone."""
        if len(self._cancels) >= self._limits.cancelled_ids:
            # the oldest: its own deadline is the nearest
            del self._cancels[next(iter(self._cancels))]
            self._metrics.log_faults.labels("cancel_dropped").inc()
        self._cancels[tenant, request_id] = None
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel_all(), name="cancels")

    async def _cancel_all(self) -> None:
        while self._cancels:
            keys = list(self._cancels)[:CANCELS_AT_ONCE]
            appender: Appender | None = None
            try:
                async with asyncio.timeout(self._limits.publish_seconds):
                    appender = self._appender or await self.open()
                    acks = [
                        appender.append(CONTROL, 0, encode(_cancel(key, "nobody waits for it")))
                        for key in keys
                    ]
                    for key, ack in zip(keys, acks, strict=True):
                        await ack
                        self._cancels.pop(key, None)
            except (LogError, TimeoutError) as error:
                # what is on the log already may come a second time, which changes nothing
                _log.warning("cancels wait for the log: %s", error or "no ack")
                if appender is not None:
                    self._drop(appender)
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Gives background cancels a moment, then lets go. Idempotent."""
        if self._cancelling is not None:
            await asyncio.wait({self._cancelling}, timeout=2.0)
            self._cancelling.cancel()
            await asyncio.gather(self._cancelling, return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)
        appender, self._appender = self._appender, None
        if appender is not None:
            await appender.close()


def _cancel(key: Key, reason: str) -> Control:
    tenant, request_id = key
    return Control(kind="cancel", tenant=tenant, request_id=request_id, reason=reason)
