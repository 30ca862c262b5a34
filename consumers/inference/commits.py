"""Commits of one tier: they follow with the lowest incomplete offset, and prove membership."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from consumers.inference.hosting import Host
from consumers.inference.ownership import Owned, Ownership, unchanged_commit
from topics.fence_tail import FenceTail
from topics.ports import CommitRefused, Committed, Log, LogError, Member, Partition

COMMIT_INTERVAL_SECONDS = 0.1
SILENT_SHARE = 0.8

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """The tier, as its commits see it."""

    topic: str
    group: str
    owned: dict[Partition, Owned]
    member: Member | None
    ownership: Ownership
    fence_tail: FenceTail
    assigned: frozenset[Partition]
    assignment_number: int
    paused_for_room: bool

    def has_span(self, q: Partition) -> bool:
        """False while too many offsets beyond the committed one were started."""
        ...

    def may_read(self, q: Partition) -> bool:
        """True if it is owned under the current assignment, with a position and span left."""
        ...

    def end_epochs(self, reason: str, qs: Iterable[Partition] | None = None) -> None:
        """Drops the memory of these (or all) partitions."""
        ...


class Commits:
    """Commits for one tier, each checked against `fences` first."""

    def __init__(self, tier: Owner, log: Log, host: Host, session_timeout_seconds: float) -> None:
        self._tier = tier
        self._log = log
        self._host = host
        self._session_seconds = session_timeout_seconds
        self.accepted_s = 0.0
        """When the last accepted commit was begun, by `time.monotonic`."""
        self._turn = asyncio.Lock()
        self._in_doubt: dict[Partition, Committed] = {}
        self._in_doubt_since = -1  # the number of the assignment

    def is_silent(self, now_s: float) -> bool:
        """True if the tier owns, and the last accepted commit is too old: the group may have given up on us.

        `now_s` by `time.monotonic`: an event loop may keep the time of before a process was stopped.
        """
        silent_s = now_s - self.accepted_s
        return bool(self._tier.owned) and silent_s > SILENT_SHARE * self._session_seconds

    async def commit_unchanged(self, qs: frozenset[Partition]) -> None:
        """Commits what is committed: proof of membership, and nothing else changes."""
        # One of ours that is under way could land between the question and the commit, which would
        # then take the group back to where it was.
        async with self._turn:
            await self._commit_unchanged(qs)

    async def _commit_unchanged(self, qs: frozenset[Partition]) -> None:
        assignment = self._tier.assignment_number
        unchanged = await unchanged_commit(self._log, self._tier.group, qs)
        if assignment != self._tier.assignment_number:
            raise CommitRefused("the assignment changed meanwhile")  # else it could go back
        for q, at in self._doubts().items():
            if q in unchanged and at.offset > unchanged[q].offset:
                unchanged[q] = at
        await self._send(unchanged)

    def _doubts(self) -> dict[Partition, Committed]:
        """Commits of this assignment that were sent and not answered.

        Such a one may lie on the log while the group still tells what was before it: it tells only what
        all replicas have. To repeat that would take the group back; what is in doubt is as true as when
        it was sent. Under a new assignment nothing is in doubt, for that was written behind it.
        """
        if self._in_doubt_since != self._tier.assignment_number:
            self._in_doubt_since, self._in_doubt = self._tier.assignment_number, {}
        return self._in_doubt

    async def _send(self, offsets: Mapping[Partition, Committed]) -> None:
        assert self._tier.member is not None
        begun_s = time.monotonic()
        doubts = self._doubts()
        doubts.update(offsets)
        await self._tier.member.commit(offsets)
        self.accepted_s = begun_s
        for q in offsets:
            doubts.pop(q, None)

    async def follow(self) -> None:
        """Commits what moved, and now and then what did not, for ever."""
        period = self._session_seconds / 3
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_SECONDS)
            now_s = loop.time()
            if self.is_silent(time.monotonic()):
                self._tier.end_epochs("no commit accepted for most of a session timeout")
            moved = {
                q for q, it in self._tier.owned.items() if it.tracker.low() > it.tracker.committed
            }
            if not moved and (now_s - begun_s < period or not self._tier.assigned):
                continue
            begun_s = now_s
            try:
                await self.commit(moved or set(self._tier.owned))
            except LogError as error:
                _log.warning("%s: commit not accepted: %s", self._tier.topic, error)
                self._host.count(
                    "commit_refused" if isinstance(error, CommitRefused) else "commit_failed"
                )
                await asyncio.sleep(min(0.5, period / 4))

    async def commit(self, qs: set[Partition]) -> None:
        """One checked commit: snapshot, then no higher epoch on `fences`, then the group's word."""
        async with self._turn:
            await self._commit(qs)

    async def _commit(self, qs: set[Partition]) -> None:
        assert self._tier.member is not None
        assignment = self._tier.assignment_number
        snapshot = {
            q: (it, it.tracker.commit_point(self._tier.ownership.reached, it.found))
            for q, it in self._tier.owned.items()
            if q in qs and q in self._tier.assigned
        }
        if not snapshot:
            if self._tier.assigned:
                await self._commit_unchanged(self._tier.assigned)
            return
        await self._tier.fence_tail.caught_up()
        overtaken = {
            q
            for q, (it, _) in snapshot.items()
            if self._tier.fence_tail.fences.highest(str(q)) != it.epoch
        }
        if overtaken:
            self._tier.end_epochs("overtaken", overtaken)
        offsets = {
            q: Committed(point.offset, self._tier.ownership.metadata(point))
            for q, (it, point) in snapshot.items()
            if self._tier.owned.get(q) is it
        }
        if not offsets or assignment != self._tier.assignment_number:
            return
        await self._send(offsets)
        self._host.count("commit")
        for q, at in offsets.items():
            it = self._tier.owned.get(q)
            if it is not None and it is snapshot[q][0]:
                had_span = self._tier.has_span(q)
                it.tracker.committed = max(it.tracker.committed, at.offset)
                it.found = {o: found for o, found in it.found.items() if o >= at.offset}
                if not had_span and self._tier.may_read(q) and not self._tier.paused_for_room:
                    self._tier.member.resume([q])
