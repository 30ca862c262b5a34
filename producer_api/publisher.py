"""The process's one appender, replaced when it is in doubt; and cancels that nobody waits for."""

import asyncio
import contextlib
import logging

from core.errors import Refusal
from core.limits import Limits
from core.stream import Key
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.operations import Control
from topics.catalogue import CONTROL
from topics.ports import Appended, Appender, AppendFailed, Headers, Log, LogError

REOPEN_SECONDS = 0.5
CANCELS_AT_ONCE = 256

_log = logging.getLogger(__name__)


class Publisher:
    """`start`, then `open_appender` (or `append`), and `distrust` what failed."""

    def __init__(self, log: Log, clock: BrokerClock, limits: Limits, metrics: Metrics) -> None:
        self.appender: Appender | None = None
        self._log = log
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._opened = asyncio.Event()
        self._reopening: asyncio.Task[None] | None = None
        self._cancels: dict[Key, str] = {}
        self._cancelling: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Connects. Raises LogError."""
        self.appender = await self._log.appender()
        self._opened.set()

    async def open_appender(self) -> Appender:
        """The appender; waits, unbounded, while it is being made anew."""
        while self.appender is None:
            await self._opened.wait()
        return self.appender

    def distrust(self, appender: Appender) -> None:
        """After an append that failed: order is no longer certain, so a new appender is made."""
        if self.appender is not appender or self._closed:
            return  # somebody else has seen to it
        self.appender = None
        self._opened.clear()
        self._metrics.client_rebuilds.labels("appender", "append_failed").inc()
        self._reopening = asyncio.create_task(self._reopen(appender), name="reopen-appender")

    async def _reopen(self, broken: Appender) -> None:
        with contextlib.suppress(LogError):
            await broken.close(0.0)
        while self.appender is None:
            try:
                self.appender = await self._log.appender()
            except LogError as error:
                _log.warning("the log cannot be written to yet: %s", error)
                await asyncio.sleep(REOPEN_SECONDS)
        self._opened.set()

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> Appended:
        """Appends one record, waiting at most `publish_seconds` for its ack.

        Raises AppendFailed where the record is certainly not on the log, AppendUnknown or
        TimeoutError where it may be.
        """
        appender: Appender | None = None
        try:
            async with asyncio.timeout(self._limits.publish_seconds):
                appender = await self.open_appender()
                sent_ms = self._clock.wall_ms()
                appended = await appender.append(topic, partition, value, key=key, headers=headers)
        except (LogError, TimeoutError) as error:
            if appender is None:
                raise AppendFailed("there is no connection to append through") from error
            self.failed(topic, appender, error)
            raise
        self.observe(appended, sent_ms)
        return appended

    def failed(self, topic: str, appender: Appender, error: Exception) -> None:
        """Counts a failed append and gives up its appender."""
        outcome = "refused" if isinstance(error, AppendFailed) else "unknown"
        self._metrics.publish_failures.labels(topic, outcome).inc()
        self.distrust(appender)

    def observe(self, appended: Appended, sent_ms: float) -> None:
        """Learns the broker's time from an ack."""
        if appended.time_ms is not None:
            self._clock.observe(appended.time_ms, sent_ms, self._clock.wall_ms())

    # --- cancels

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends a cancel; done when it is acknowledged. Raises Refusal `unavailable`."""
        try:
            await self.append(CONTROL, 0, _cancel_record((tenant, request_id), reason))
        except (LogError, TimeoutError) as error:
            raise unavailable() from error

    def cancel_soon(self, tenant: str, request_id: str, reason: str) -> None:
        """Appends a cancel at once, or as soon as the log takes it; bounded by `cancelled_ids`."""
        if self._closed:
            return
        if len(self._cancels) >= self._limits.cancelled_ids:
            del self._cancels[next(iter(self._cancels))]  # the oldest: its deadline is the nearest
            self._metrics.log_faults.labels("cancel_dropped").inc()
        self._cancels[tenant, request_id] = reason
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel_all(), name="cancels")

    async def _cancel_all(self) -> None:
        while self._cancels:
            some = dict(list(self._cancels.items())[:CANCELS_AT_ONCE])
            appender = await self.open_appender()
            acks = {
                key: appender.append(CONTROL, 0, _cancel_record(key, reason))
                for key, reason in some.items()
            }
            failure: Exception | None = None
            for key, ack in acks.items():
                try:
                    async with asyncio.timeout(self._limits.publish_seconds):
                        await ack
                    self._cancels.pop(key, None)
                except (LogError, TimeoutError) as error:
                    failure = error  # a second copy of a cancel changes nothing
            if failure is not None:
                self.failed(CONTROL, appender, failure)
                await asyncio.sleep(REOPEN_SECONDS)

    async def close(self) -> None:
        """Appends the cancels that are left, within a limit, then lets go. Idempotent."""
        if self._cancelling is not None and not self._cancelling.done():
            await asyncio.wait({self._cancelling}, timeout=2.0)
        self._closed = True
        left = [it for it in (self._cancelling, self._reopening) if it is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        appender, self.appender = self.appender, None
        if appender is not None:
            await appender.close()


def _cancel_record(key: Key, reason: str) -> bytes:
    tenant, request_id = key
    return encode(Control(kind="cancel", tenant=tenant, request_id=request_id, reason=reason))


def unavailable() -> Refusal:
    """The log cannot be reached: nothing was done."""
    return Refusal(
        "unavailable", "The log cannot be reached right now: try again.", retry_after_seconds=2
    )
