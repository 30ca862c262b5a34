"""One tier of one pool: a member of its consumer group, and what it owns there.

Three loops: `read` picks records up while the worker has room, `own` takes partitions over and takes
them over again when an epoch ended, `commit` follows with the lowest incomplete offset.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable

from consumers.inference.commits import Commits
from consumers.inference.hosting import Host
from consumers.inference.identity import request_group
from consumers.inference.ownership import Owned, Ownership, oldest_append_ms
from consumers.inference.replies import ReplyWriter
from consumers.inference.started_first import StartedFirst
from schemas.codec import UndecodableRecord
from schemas.requests import Tier
from topics.catalogue import request_topic
from topics.fence_tail import FenceTail
from topics.ports import Log, LogError, Member, OffsetOutOfRange, Partition, Record

RETRY_SECONDS_MAX = 2.0
AT_ONCE = 128
"""Requests that are picked up in one turn of the event loop. Fewer would share fewer records on `replies`: with
32, a backlog cost a sixth more CPU per request."""

_log = logging.getLogger(__name__)


class TierConsumer:
    """The consumer of one tier. `start`, then `drain`, then `close`."""

    def __init__(
        self,
        log: Log,
        pool: str,
        tier: Tier,
        host: Host,
        ownership_parts: tuple[str, FenceTail, ReplyWriter],
        *,
        session_timeout_seconds: float,
        span_offsets: int,
    ) -> None:
        incarnation, self.fence_tail, self._writer = ownership_parts
        self.tier = tier
        self.topic = request_topic(pool, tier)
        self.group = request_group(pool, tier)
        self.owned: dict[Partition, Owned] = {}
        self.member: Member | None = None
        self.room_made = asyncio.Event()
        self._log = log
        self._host = host
        self.ownership = Ownership(
            log, self.group, incarnation, self.fence_tail, self._writer, span_offsets
        )
        self._session_seconds = session_timeout_seconds
        self._span_offsets = span_offsets
        self.assigned: frozenset[Partition] = frozenset()
        self.assignment_number = 0
        self.paused_for_room = False
        self._wanted: set[Partition] = set()
        self._owning: asyncio.Task[None] | None = None
        self._epoch_ended = asyncio.Event()
        self._wanted_since_s = 0.0
        self.commits = Commits(self, log, host, session_timeout_seconds)
        self._loops: list[asyncio.Task[None]] = []
        self._reading = True
        self._leaving = False
        self._started_first = StartedFirst(self.owned)

    async def start(self) -> list[asyncio.Task[None]]:
        """Joins the group; returns the loops, whose failure is the worker's."""
        self.member = await self._log.join(
            self.group,
            self.topic,
            on_revoked=self._on_revoked,
            on_assigned=self._on_assigned,
            session_timeout_seconds=self._session_seconds,
        )
        self._loops = [
            asyncio.create_task(self._read_loop(), name=f"read-{self.tier}"),
            asyncio.create_task(self.commits.follow(), name=f"commit-{self.tier}"),
            asyncio.create_task(self._watch_fences(), name=f"watch-{self.tier}"),
        ]
        return self._loops

    # --- the group's hooks: inside a rebalance, so quick

    async def _on_revoked(self, _qs: frozenset[Partition]) -> None:
        self.assigned = frozenset()
        self.assignment_number += 1
        await self._stop_owning()

    async def _on_assigned(self, qs: frozenset[Partition]) -> None:
        if self._leaving:
            return  # a rebalance beside the last commit: to take over now would end a peer's epochs
        self._host.count("rebalance")
        self.assigned = qs
        self._wanted_since_s = asyncio.get_running_loop().time()
        self.commits.accepted_s = time.monotonic()
        if lost := set(self.owned) - qs:
            self._forget(lost)
        self._wanted = set(qs)
        self._owning = asyncio.create_task(self._own_loop(), name=f"own-{self.tier}")

    async def _stop_owning(self) -> None:
        if self._owning is not None:
            self._owning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._owning
            self._owning = None

    # --- owning

    def end_epochs(self, reason: str, qs: Iterable[Partition] | None = None) -> None:
        """Drops the memory of these (or all) partitions: only the log is trusted from now on."""
        ended = set(self.owned if qs is None else qs) & set(self.owned)
        if not ended:
            return
        _log.warning("epochs of %s ended: %s", ", ".join(map(str, sorted(ended))), reason)
        self._host.count("epoch_ended", reason)
        self._forget(ended)
        now_s = asyncio.get_running_loop().time()
        self._wanted_since_s = self._wanted_since_s if self._wanted else now_s
        self._wanted |= ended & self.assigned
        self._epoch_ended.set()

    def _forget(self, qs: set[Partition]) -> None:
        for q in qs:
            del self.owned[q]
        self._host.drop(frozenset(map(str, qs)))
        if self.member is not None:
            self.member.pause(q for q in qs if q in self.assigned)

    async def _own_loop(self) -> None:
        """Lives as long as the assignment: keeps (step 0), acquires, acquires again."""
        assert self.member is not None
        pause_seconds = 0.1
        confirmed = True  # a fresh assignment is itself the proof of membership
        while True:
            try:
                await self._keep()
                if self._wanted:
                    if not confirmed:  # one begun after the doubt says that we are still a member
                        await self.commits.commit_unchanged(frozenset(self._wanted))
                    await self._acquire(frozenset(self._wanted))
                pause_seconds = 0.1
            except (LogError, UndecodableRecord) as error:
                # what a fold cannot read it must not guess: unowned it stays, loudly
                level = logging.ERROR if isinstance(error, UndecodableRecord) else logging.WARNING
                _log.log(level, "%s: not owned yet: %s", self.topic, error)
                self._host.count("acquire_failed")
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(RETRY_SECONDS_MAX, pause_seconds * 2)
                continue
            await self._epoch_ended.wait()
            self._epoch_ended.clear()
            confirmed = False

    async def _keep(self) -> None:
        """Step 0: an epoch is kept if the highest A of its q is the very one."""
        kept = self._wanted & set(self.owned)
        if not kept:
            return
        await self.fence_tail.caught_up()
        kept &= set(self.owned)
        fresh = {q for q in kept if self.fence_tail.fences.highest(str(q)) == self.owned[q].epoch}
        if kept - fresh:
            self.end_epochs("overtaken", kept - fresh)
        for q in fresh:
            self._wanted.discard(q)
            self._begin_reading(q)

    async def _acquire(self, qs: frozenset[Partition]) -> None:
        failures_count = self._writer.failures_count
        acquired = await self.ownership.acquire(qs)
        for owned in acquired.values():
            if owned.tracker.next < owned.suspect_end:
                oldest_ms = await oldest_append_ms(self._log, owned)
                if oldest_ms is not None:  # else there are no records, only marks of transactions
                    await self._host.cover_cancels(oldest_ms)
        if self._writer.failures_count != failures_count:
            # another tier's publish: what is not owned yet is not told, and would not be heard
            raise LogError("a publish failed while the partitions were taken over")
        for q, owned in acquired.items():
            if owned.moved:
                self._host.count("committed_off_log")
            self.owned[q] = owned
            self._wanted.discard(q)
        self._started_first.begin(asyncio.get_running_loop().time())
        for q in acquired:
            self._begin_reading(q)
        self._host.measures.took_over(asyncio.get_running_loop().time() - self._wanted_since_s)

    def _begin_reading(self, q: Partition) -> None:
        assert self.member is not None
        self.member.seek(q, self.owned[q].tracker.next)
        if self.may_read(q) and not self.paused_for_room:
            self.member.resume([q])

    def has_span(self, q: Partition) -> bool:
        """False while too many offsets beyond the committed one were started."""
        tracker = self.owned[q].tracker
        return tracker.next < tracker.committed + self._span_offsets

    def may_read(self, q: Partition) -> bool:
        """Owned under the current assignment, with a position, span left, and its turn come.

        What was owned before a rebalance stays in `owned` until step 0 keeps or drops it; the new
        assignment has no position for it yet, and to resume it would bring the worker down.
        """
        ready = q in self.assigned and q not in self._wanted and self.has_span(q)
        return ready and not self._started_first.holds(q)

    # --- reading

    async def _read_loop(self) -> None:
        """Polls always (a member that does not poll is expelled); reads only what there is room for."""
        assert self.member is not None
        while True:
            room = self._host.room(self.tier) if self._reading else 0
            turn_came = self._started_first.ended(asyncio.get_running_loop().time())
            if turn_came or (room <= 0) != self.paused_for_room:
                self.paused_for_room = room <= 0
                if self.paused_for_room:
                    self.member.pause(q for q in self.owned if q in self.assigned)
                else:
                    self.member.resume(q for q in self.owned if self.may_read(q))
            try:
                records = await self._read(self.member, room)
            except OffsetOutOfRange:
                self.end_epochs("position off the log")  # acquiring again finds where to go on
                continue
            if records:
                self._host.measures.read(records)
            for record in records:
                self._pick_up(record)

    async def _read(self, member: Member, room: int) -> list[Record]:
        if not self.paused_for_room:
            return await member.read(max_wait_seconds=0.5, max_records=min(room, AT_ONCE))
        self.room_made.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.room_made.wait(), 0.2)
        return await member.read(max_wait_seconds=0.0, max_records=1)

    def _pick_up(self, record: Record) -> None:
        q = Partition(record.topic, record.partition)
        owned = self.owned.get(q)
        if owned is None or record.offset < owned.tracker.next:
            return  # not ours (any more): whoever owns it reads it again from the committed offset
        if not self.has_span(q) or self._started_first.holds(q):
            assert self.member is not None
            self.member.pause([q])
            self.member.seek(q, owned.tracker.next)
            return
        self._host.pick_up(owned, record)
        owned.settled()

    async def _watch_fences(self) -> None:
        """Another owner's A on what we believe to own: drop it at once, ask the group afterwards."""
        while True:
            await asyncio.sleep(0.25)
            if (owning := self._owning) is not None and owning.done() and not owning.cancelled():
                owning.result()  # a fault of ours: unseen, this worker would own nothing for ever
            fences = self.fence_tail.fences
            if lost := {q for q, it in self.owned.items() if fences.highest(str(q)) > it.epoch}:
                self.end_epochs("overtaken", lost)
            if self.fence_tail.failure:
                raise self.fence_tail.failure

    # --- the end

    def stop_reading(self) -> None:
        """No new records; what was picked up stays owned."""
        self._reading = False

    def lag_ready(self) -> bool:
        """True when all that the group gave, be it nothing, is owned and being read."""
        return self._owning is not None and not self._wanted

    async def close(self) -> None:
        """Commits once more, then leaves the group."""
        self._leaving = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._stop_owning()
        if self.member is not None:
            with contextlib.suppress(LogError):
                await self.commits.commit(set(self.owned))
            await self.member.close()
            self.member = None
