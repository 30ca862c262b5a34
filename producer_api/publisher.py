"""Appending requests and cancels: one appender, both acks, and what a failure means."""

import asyncio
import contextlib
import logging
import time

from core.errors import Refusal
from core.limits import Limits
from core.stream import Key
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.envelope import request_headers
from schemas.ids import parse_request_id
from schemas.operations import Control
from schemas.replies import Accepted
from schemas.requests import Request
from topics.catalogue import CONTROL, REPLIES
from topics.ports import Appender, AppendFailed, Log, LogError, Partition, RecordTooLarge

_log = logging.getLogger(__name__)


def unavailable() -> Refusal:
    """503: nothing was appended."""
    return Refusal("unavailable", "The log cannot be reached.", retry_after_seconds=2)


class Publisher:
    """Used by one pipeline; `open` at start, `close` at the end."""

    def __init__(self, log: Log, clock: BrokerClock, limits: Limits, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._appender: Appender | None = None
        self._opening = asyncio.Lock()
        self._later: set[asyncio.Task[None]] = set()

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
        *,
        keyed: bool,
    ) -> None:
        """Appends the request and `Accepted` side by side; returns after both acks.

        Raises Refusal: `request_too_large`, `unavailable`, or `outcome_unknown`; then a request
        without a key is cancelled as soon as the log can be reached.
        """
        parts = parse_request_id(request.id)
        accepted = Accepted(id=request.id, tenant=request.tenant, info=request.info())
        headers = request_headers(request.id, request.tenant, parts.time_ms, traceparent)
        try:
            appender = self._appender or await self.open()
            sent_ms = time.time() * 1000
            acks = (
                appender.append(q.topic, q.index, encode(request), key=record_key, headers=headers),
                appender.append(REPLIES, parts.reply_partition, encode(accepted)),
            )
            async with asyncio.timeout(self._limits.publish_seconds):
                appended = await acks[0]
                await acks[1]
        except (LogError, TimeoutError) as error:
            raise self._failed(error, (request.tenant, request.id), keyed=keyed) from error
        if appended.time_ms:
            acked_ms = time.time() * 1000
            self._clock.observe(appended.time_ms, sent_ms, acked_ms)
            self._metrics.publish.labels("requests").observe((acked_ms - sent_ms) / 1000)

    def _failed(self, error: Exception, key: Key, *, keyed: bool) -> Refusal:
        _log.warning(
            "a request could not be published: %s", error or "no ack", extra={"request_id": key[1]}
        )
        if isinstance(error, RecordTooLarge):
            return Refusal("request_too_large", "The request is too large for a record.")
        self._drop()
        if isinstance(error, AppendFailed):
            return unavailable()
        if not keyed:
            self.cancel_soon(*key)
        return Refusal(
            "outcome_unknown",
            "The log did not answer in time: the request may or may not run. "
            "With an Idempotency-Key a retry would find it.",
            retry_after_seconds=2,
        )

    def _drop(self) -> None:
        """After a failure order is no longer certain: the next append makes a new appender."""
        appender, self._appender = self._appender, None
        if appender is not None:
            self._keep(asyncio.ensure_future(appender.close(0.0)))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends the cancel; done when it is acknowledged. Idempotent. Raises Refusal."""
        control = Control(kind="cancel", tenant=tenant, request_id=request_id, reason=reason)
        try:
            appender = self._appender or await self.open()
            async with asyncio.timeout(self._limits.publish_seconds):
                await appender.append(CONTROL, 0, encode(control))
        except (LogError, TimeoutError) as error:
            self._drop()
            raise unavailable() from error

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        """Cancels in the background: what a handler calls whose client is gone."""
        self._keep(asyncio.create_task(self._cancel_later(tenant, request_id), name="cancel-soon"))

    async def _cancel_later(self, tenant: str, request_id: str) -> None:
        until_s = time.monotonic() + self._limits.total_seconds
        while time.monotonic() < until_s:
            try:
                await self.cancel(tenant, request_id, "nobody waits for it")
                return
            except Refusal:
                await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Gives background cancels a moment, then lets go."""
        if self._later:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await asyncio.gather(*self._later, return_exceptions=True)
        for task in list(self._later):
            task.cancel()
        if self._appender is not None:
            await self._appender.close()
            self._appender = None
