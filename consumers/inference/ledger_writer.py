"""Records that must reach the log some time, whatever it takes: usage, dead letters, worker state.

Unlike events these may be written twice: readers keep one row per request. So a failed append is
repeated, on a new appender, until it is acknowledged or the worker ends.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from runtime.clock import BrokerClock
from topics.ports import Appended, Appender, Headers, Log, LogError, RecordTooLarge

PENDING_MAX = 50_000
RETRY_SECONDS_MAX = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    topic: str
    partition: int
    key: bytes
    value: bytes | None
    headers: Headers
    on_acknowledged: Callable[[], None] | None


class LedgerWriter:
    """Appends in the order given, as fast as acks allow; `put` never waits.

    More than `PENDING_MAX` unacknowledged records means the log is away for very long: `full` says
    so, and the worker takes nothing new.
    """

    def __init__(self, log: Log, clock: BrokerClock | None = None) -> None:
        """With a clock, each ack tells it the broker's time."""
        self._log = log
        self._clock = clock
        self._appender: Appender | None = None
        self._failed: deque[_Entry] = deque()
        self._under_way = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Opens the appender; returns the loop that repeats what failed."""
        self._appender = await self._log.appender()
        self._task = asyncio.create_task(self._repeat(), name="ledger-writer")
        return self._task

    @property
    def full(self) -> bool:
        """True while too much is unacknowledged."""
        return self._under_way + len(self._failed) >= PENDING_MAX

    def put(
        self,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes | None,
        *,
        headers: Headers = (),
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        """Hands a record over; `on_acknowledged` is called after its ack."""
        self._send(_Entry(topic, partition, key, value, headers, on_acknowledged))

    def _send(self, entry: _Entry) -> None:
        if self._appender is None:
            self._failed.append(entry)
            self._wake.set()
            return
        appender = self._appender
        sent_ms = self._clock.wall_ms() if self._clock is not None else 0
        future = asyncio.ensure_future(
            appender.append(
                entry.topic, entry.partition, entry.value, key=entry.key, headers=entry.headers
            )
        )
        self._under_way += 1
        future.add_done_callback(lambda done: self._done(appender, entry, sent_ms, done))

    def _done(
        self, appender: Appender, entry: _Entry, sent_ms: int, future: "asyncio.Future[Appended]"
    ) -> None:
        self._under_way -= 1
        error = LogError("cancelled") if future.cancelled() else future.exception()
        if error is None:
            time_ms = future.result().time_ms
            if self._clock is not None and time_ms:
                # deadlines count from append times: never by two wall clocks
                self._clock.observe(time_ms, sent_ms, self._clock.wall_ms())
            if entry.on_acknowledged is not None:
                entry.on_acknowledged()
            return
        if isinstance(error, RecordTooLarge):
            _log.error("a record for %s can never be appended: %s", entry.topic, error)
            if entry.on_acknowledged is not None:
                entry.on_acknowledged()  # waiting for it would hold its partition up for ever
            return
        self._failed.append(entry)
        if self._appender is appender:
            self._appender = None
            _log.warning("an append to %s failed, trying again: %s", entry.topic, error)
            self._closing = asyncio.ensure_future(appender.close(0.0))
        self._wake.set()

    async def _repeat(self) -> None:
        pause_seconds = 0.1
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._appender is None:
                    self._appender = await self._log.appender()
                pause_seconds = 0.1
            except LogError:
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(RETRY_SECONDS_MAX, pause_seconds * 2)
                self._wake.set()
                continue
            failed, self._failed = self._failed, deque()
            for entry in failed:
                self._send(entry)

    async def settled(self, timeout_seconds: float) -> None:
        """Waits, bounded, until everything is acknowledged."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._under_way or self._failed:
                    await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Waits a little for the last acks, then lets go."""
        await self.settled(3.0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._appender is not None:
            await self._appender.close()
            self._appender = None
