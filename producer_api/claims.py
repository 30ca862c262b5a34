"""The tail of `claims`, and claiming: append, then wait until it comes back in log order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from core.errors import Refusal
from core.idempotency import ClaimBook, ClaimKey, Judged, claim_life_seconds
from core.limits import Limits
from runtime.clock import BrokerClock
from schemas.codec import UndecodableRecord, decode_claim, encode
from schemas.operations import Claim
from topics.catalogue import CLAIMS
from topics.ports import Appender, Log, LogError, OffsetOutOfRange, Partition, Tail

PRUNE_SECONDS = 1.0
"""Ends of `claims` are asked for at most so often: the tail waits for the answer."""

_log = logging.getLogger(__name__)


class Claims:
    """One replica's view of all claims; caught up before the replica is ready."""

    def __init__(self, log: Log, clock: BrokerClock, limits: Limits) -> None:
        self.book = ClaimBook()
        self._log = log
        self._clock = clock
        self._limits = limits
        self._tail: Tail | None = None
        self._here: list[Partition] = []
        self._read_up_to: tuple[float, dict[Partition, int]] | None = None
        self._prune_from_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._appender: Appender | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[Judged]] = {}
        self._turns: dict[ClaimKey, tuple[asyncio.Lock, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: ClaimKey, until_s: float) -> AsyncIterator[None]:
        """One at a time per key on this replica: many retries at once make one claim, not many.

        Raises Refusal `unavailable` if the turn has not come by `until_s` (the loop's time).
        """
        lock, users = self._turns.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            try:
                async with asyncio.timeout_at(until_s):
                    await lock.acquire()
            except TimeoutError:
                raise _unclaimed() from None
            try:
                yield
            finally:
                lock.release()
        finally:
            users.pop()
            if not users:
                del self._turns[key]

    async def start(self) -> "asyncio.Task[None]":
        """Reads from two longest lives back up to now; returns the loop that goes on."""
        count = await self._log.partition_count(CLAIMS)
        here = self._here = [Partition(CLAIMS, index) for index in range(count)]
        starts = await self._two_lives_back(here)
        ends = await self._log.end_offsets(here)
        self._tail = await self._log.tail(starts)
        async with asyncio.timeout(60.0):
            while any(self._tail.position(it) < ends[it] for it in here):
                await self._read(0.5)
        self._task = asyncio.create_task(self._run(), name="claims-tail")
        return self._task

    @property
    def reading(self) -> bool:
        """True while claims are being read."""
        return self._task is not None and not self._task.done()

    async def _two_lives_back(self, here: list[Partition]) -> dict[Partition, int]:
        """Where to begin, so that every claim that can still matter is judged as others judge it."""
        back_s = 2 * claim_life_seconds(self._limits) + self._limits.clock_skew_seconds
        since_ms = max(0, int(self._clock.now_ms() - 1000 * back_s))
        return await self._log.offsets_at(dict.fromkeys(here, since_ms))

    async def _run(self) -> None:
        while True:
            try:
                await self._read(1.0)
            except OffsetOutOfRange:
                _log.critical("claims were cut off or recreated: keys may be free early")
                assert self._tail is not None
                self.book = ClaimBook()  # what is read again must not be judged against itself
                await self._begin_anew(self._tail)
            await self._prune()

    async def _prune(self) -> None:
        """Forgets what ended before a moment up to which everything was read.

        Claims are judged by append times alone. One that has ended by our clock may still be running
        by the broker's, and one that has ended may still defeat a claim that lies on the log unread:
        forgotten, either would let a later one win here only.
        """
        assert self._tail is not None
        if self._read_up_to is None:
            now_s = asyncio.get_running_loop().time()
            before_ms = self._clock.now_ms() - self._limits.clock_skew_seconds * 1000
            if now_s < self._prune_from_s or not self.book.has_ended(before_ms):
                return
            self._prune_from_s = now_s + PRUNE_SECONDS
            try:
                ends = await self._log.end_offsets(self._here)
            except LogError:
                return
            self._read_up_to = before_ms, ends
        before_ms, ends = self._read_up_to
        if all(self._tail.position(it) >= ends[it] for it in self._here):
            self.book.prune(before_ms)
            self._read_up_to = None

    async def _begin_anew(self, tail: Tail) -> None:
        try:
            count = await self._log.partition_count(CLAIMS)
            here = self._here = [Partition(CLAIMS, index) for index in range(count)]
            self._read_up_to = None
            tail.assign(await self._two_lives_back(here))
        except LogError as error:
            _log.warning("claims cannot be read yet: %s", error)
            await asyncio.sleep(0.5)

    async def _read(self, wait_seconds: float) -> None:
        assert self._tail is not None
        for record in await self._tail.read(max_wait_seconds=wait_seconds):
            try:
                claim = decode_claim(record.value)
            except UndecodableRecord as error:
                _log.error("undecodable claim at %s/%s: %s", record.partition, record.offset, error)
                continue
            judged = self.book.feed(record.time_ms, claim)
            waiter = self._waiting.pop(claim.request_id, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(judged)

    async def claim(self, claim: Claim, until_s: float) -> Judged:
        """Appends a claim and returns its verdict in log order.

        Raises Refusal: `too_many_claims`, or `unavailable` when the log does not answer by `until_s`. A
        claim that may have been appended then is harmless: its request was not published.
        """
        if self.book.count(claim.tenant) >= self._limits.claims_per_tenant:
            raise Refusal(
                "too_many_claims",
                "This tenant holds as many idempotency keys as it may; they free up with time.",
                retry_after_seconds=60,
            )
        key = f"{claim.tenant}\0{claim.key}".encode()
        waiter = self._waiting[claim.request_id] = asyncio.get_running_loop().create_future()
        appender: Appender | None = None
        try:
            async with asyncio.timeout_at(until_s):
                await self._log.partition_count(CLAIMS)
                async with self._opening:
                    if self._appender is None:
                        self._appender = await self._log.appender()
                    appender = self._appender
                partition = self._log.partition_of_key(CLAIMS, key)
                await appender.append(CLAIMS, partition, encode(claim), key=key)
                judged: Judged = await waiter
                return judged
        except (LogError, TimeoutError) as error:
            if appender is not None and self._appender is appender:
                self._appender = None  # the next claim makes a new one
                self._closing = asyncio.ensure_future(appender.close(0.0))
            raise _unclaimed() from error
        finally:
            self._waiting.pop(claim.request_id, None)

    async def close(self) -> None:
        """Ends the tail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._appender is not None:
            await self._appender.close()
            self._appender = None
        if self._tail is not None:
            await self._tail.close()
            self._tail = None


def _unclaimed() -> Refusal:
    message = "The key could not be claimed right now."
    return Refusal("unavailable", message, retry_after_seconds=1)
