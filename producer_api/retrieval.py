"""Finding what the log says of a request: kept in memory, or read back through a shared scan."""

import asyncio
import secrets
from collections.abc import Callable

from core.errors import Refusal
from core.limits import Limits
from core.stream import Key, Visible, is_terminal
from producer_api.control_tail import ControlTail, deletion
from producer_api.followers import Followers
from producer_api.mailbox import Mailbox
from producer_api.placement import Placement
from producer_api.publisher import Publisher, unavailable
from producer_api.result_cache import ResultCache
from producer_api.streams import ReplyStream, result_expired
from producer_api.submission import Snapshot, info_of, late_by, snapshot_of
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.operations import Control
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError

SCAN_SECONDS = 30.0
"""A scan that takes longer is given up: the log does not answer."""


class Deleted(Refusal):
    """Its client deleted it: it is not found, and must not be made again under the same id."""

    def __init__(self) -> None:
        super().__init__("not_found", "There is no such request.")


class Retrieval:
    """One per API process: `start`, then `stream` and `look_up`, then `close`."""

    def __init__(
        self,
        log: Log,
        clock: BrokerClock,
        limits: Limits,
        metrics: Metrics,
        publisher: Publisher,
        draining: asyncio.Event,
    ) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._publisher = publisher
        self._draining = draining
        self._cache = ResultCache(limits, metrics)
        self._control = ControlTail(log, clock, limits, metrics, self._cache.drop)

    async def start(self, fence_tail: FenceTail, placement: Placement) -> "asyncio.Task[None]":
        """Returns the loop that reads `control`, once it is current. Raises LogError."""
        self._placement = placement
        self._followers = Followers(self._log, fence_tail, self._limits, self._metrics)
        return await self._control.start()

    @property
    def reading(self) -> bool:
        """Whether deletions are being read: without them nothing may be shown."""
        return self._control.reading

    def stream(
        self,
        key: Key,
        box: Mailbox | None = None,
        ahead: list[Visible] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> ReplyStream:
        """The answer of a request, from its mailbox or from the log."""
        reason = "mailbox" if box is not None else "status" if on_close is None else "follow"
        return ReplyStream(
            key,
            self._draining,
            lambda skip: self._followers.follow(key, skip=skip, reason=reason),
            self._late_by,
            box,
            ahead=ahead or (),
            recording=self._cache.record(key) if ahead is None else None,
            on_close=on_close,
        )

    def _late_by(self, request_id: str, total_seconds: float | None) -> float:
        total_s = self._limits.total_seconds if total_seconds is None else total_seconds
        margin_s = self._limits.deadline_margin_seconds
        return late_by(request_id, total_s, self._clock.now_ms(), margin_s)

    async def look_up(self, key: Key) -> list[Visible] | None:
        """The whole answer if it is kept here; None: read it back. Raises Refusal."""
        self._placement.check_id(key[1], self._limits.reply_retention_seconds)
        try:
            await self._control.caught_up()
        except LogError as error:
            raise unavailable() from error
        if self._control.is_deleted(key):
            raise Deleted
        return await self._cache.get(key)

    async def catch_up(self, stream: ReplyStream) -> Snapshot:
        """Reads a stream up to the end of the log as it is now. Raises Refusal."""
        now_ms = self._clock.now_ms()  # of before that end was taken: what is unread may be later
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                visible = await stream.catch_up()
        except (LogError, TimeoutError) as error:
            raise unavailable() from error
        if info_of(visible) is None and not is_terminal(visible[-1]):
            raise result_expired()  # retention took all before its first token
        margin_s = self._limits.deadline_margin_seconds
        return snapshot_of(stream.request_id, visible, now_ms, margin_s)

    async def delete(self, key: Key) -> None:
        """Deletes a request on every replica; done when this one has read it. Raises Refusal."""
        if self._control.is_full_of_deletions:
            raise Refusal(
                "overloaded", "Too many requests were deleted lately.", retry_after_seconds=60
            )
        await self._publisher.tell(deletion(key))
        await self._read_control()
        self._metrics.deletions.inc()

    async def redeem(self, key: Key, ticket: str) -> bool:
        """Uses up a ticket; False if somebody did before, on whatever replica. Raises Refusal."""
        if self._control.use_of(ticket) is not None:
            return False
        if self._control.is_full_of_tickets:
            raise Refusal("overloaded", "Too many tickets were used.", retry_after_seconds=30)
        use = secrets.token_hex(8)
        tenant, request_id = key
        await self._publisher.tell(
            Control(kind="redeem", tenant=tenant, request_id=request_id, ticket=ticket, use=use)
        )
        await self._read_control()
        return self._control.use_of(ticket) == use

    async def _read_control(self) -> None:
        try:
            await self._control.caught_up()
        except LogError as error:
            raise unavailable() from error

    async def close(self) -> None:
        """Ends what it reads."""
        await self._followers.close()
        await self._control.close()
