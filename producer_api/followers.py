"""Everything that is read back from `replies`: few scans per partition, shared by all who follow.

At most `scans_per_partition` readers of one reply partition, and scans for at most
`scans_per_tenant` of a tenant before they have caught up; who finds no place waits. So two hundred
clients that resume at once after a replica died cost a handful of readers.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable

from core.errors import InferlogError
from core.limits import Limits
from core.stream import Key, Visible
from producer_api.scan_member import Member
from producer_api.shared_scan import SharedScan
from runtime.metrics import Metrics
from schemas.ids import parse_request_id
from topics.fence_tail import FenceTail
from topics.ports import Log

_log = logging.getLogger(__name__)


class Following:
    """One request as it is read back from the log, from its beginning on. Close it."""

    def __init__(self, followers: "Followers", partition: int, member: Member) -> None:
        self._followers = followers
        self._partition = partition
        self._member = member

    @property
    def at_end(self) -> bool:
        """True once everything up to an end taken after the beginning was read."""
        return self._member.at_end

    @property
    def gap(self) -> bool:
        """True if retention took the beginning: nothing more will ever be accepted."""
        return self._member.gap

    async def read(self, max_wait_seconds: float) -> list[Visible]:
        """The next visible events; [] after the wait, or when `at_end` became true. Raises LogError."""
        member = self._member
        if events := member.box.take():
            return events
        if member.gap or member.ended:
            return []
        if member.failure is not None:
            raise member.failure
        if member.go_on_from is not None and not self._followers.holds(self._partition, member):
            self._followers.enter(self._partition, member)
        await member.box.wait(max_wait_seconds)
        events = member.box.take()
        if not events and member.failure is not None:
            raise member.failure
        return events

    def abandon(self) -> None:
        """Wakes whoever waits in `read`."""
        self._member.box.wake()

    def close(self) -> None:
        """Lets go. Idempotent."""
        self._followers.leave(self._partition, self._member)
        self._member.box.close()


class Followers:
    """One per API process. `follow` while it lives, `close` at the end."""

    def __init__(self, log: Log, fence_tail: FenceTail, limits: Limits, metrics: Metrics) -> None:
        self._log = log
        self._fence_tail = fence_tail
        self._limits = limits
        self._metrics = metrics
        self._scans: defaultdict[int, list[SharedScan]] = defaultdict(list)
        # dicts for sets, in the order of coming: thousands may wait, and each is let in and let go
        self._waiting: defaultdict[int, dict[Member, None]] = defaultdict(dict)
        self._tasks: dict[SharedScan, asyncio.Task[None]] = {}
        self._closed = False

    def follow(self, key: Key, *, skip: int = 0, reason: str = "follow") -> Following:
        """Begins to read a request back; `skip` visible events were delivered before."""
        parts = parse_request_id(key[1])
        since_ms = max(0, parts.time_ms - int(self._limits.clock_skew_seconds * 1000))
        member = Member(key, since_ms, self._limits, skip)
        self._metrics.log_scans.labels(reason).inc()
        self.enter(parts.reply_partition, member)
        return Following(self, parts.reply_partition, member)

    def enter(self, partition: int, member: Member) -> None:
        """Joins a scan that will still see all it needs, else waits for one to begin."""
        for scan in self._scans[partition]:
            if scan.admits(member):
                self._metrics.scan_members.labels("joined").inc()
                scan.admit(member)
                return
        self._waiting[partition][member] = None
        self._begin_scans()

    def holds(self, partition: int, member: Member) -> bool:
        """Whether a scan reads for it, or it waits for one."""
        if member in self._waiting[partition]:
            return True
        return any(member in scan.members.get(member.key, ()) for scan in self._scans[partition])

    def leave(self, partition: int, member: Member) -> None:
        """Nobody reads it any more. Idempotent."""
        self._waiting[partition].pop(member, None)
        for scan in self._scans[partition]:
            scan.leave(member)
            if not scan.members and not scan.ended:
                # it would wait for the next record, and keep a place that others wait for
                scan.ended = True
                self._tasks[scan].cancel()

    # --- scans

    def _begin_scans(self) -> None:
        for partition, waiting in self._waiting.items():
            if not waiting or self._closed:
                continue
            if len(self._scans[partition]) >= self._limits.scans_per_partition:
                continue
            if group := self._group(waiting):
                for member in group:
                    del waiting[member]
                self._begin(partition, group)

    def _group(self, waiting: Iterable[Member]) -> list[Member]:
        """Who may start together: of tenants that have room, and one reader's state per key."""
        running: defaultdict[str, int] = defaultdict(int)
        for scan in (it for scans in self._scans.values() for it in scans if not it.caught_up):
            for tenant in {key[0] for key in scan.members}:
                running[tenant] += 1
        group: list[Member] = []
        fresh: set[Key] = set()
        parked: set[Key] = set()
        for member in waiting:
            key = member.key
            if running[key[0]] >= self._limits.scans_per_tenant or key in parked:
                continue
            if member.go_on_from is not None:
                if key in fresh:
                    continue
                parked.add(key)
            else:
                fresh.add(key)
            group.append(member)
        return group

    def _begin(self, partition: int, group: list[Member]) -> None:
        scan = SharedScan(
            self._log, self._fence_tail, partition, lambda it: self._progressed(partition, it)
        )
        self._metrics.scan_members.labels("began").inc(len(group))
        self._metrics.shared_scans.inc()
        for member in group:
            scan.admit(member)
        self._scans[partition].append(scan)
        self._count_scans()
        task = asyncio.create_task(self._run(partition, scan), name=f"scan-{partition}")
        self._tasks[scan] = task
        # not in the task itself: one that is cancelled before it began never runs
        task.add_done_callback(lambda _: self._end(partition, scan))

    async def _run(self, partition: int, scan: SharedScan) -> None:
        try:
            await scan.run()
        except Exception as error:  # noqa: BLE001  # whoever waits must be told, whatever it was
            _log.critical("a scan of replies/%s failed", partition, exc_info=error)
            for members in scan.members.values():
                for member in members:
                    member.fail(InferlogError("a scan failed"))

    def _end(self, partition: int, scan: SharedScan) -> None:
        self._scans[partition].remove(scan)
        del self._tasks[scan]
        self._count_scans()
        self._begin_scans()

    def _count_scans(self) -> None:
        self._metrics.log_scans_running.set(sum(len(it) for it in self._scans.values()))

    def _progressed(self, partition: int, scan: SharedScan) -> None:
        """Scans that stand at one place become one; who had no place may have one now."""
        scan.meet_at = None
        if scan.caught_up and scan.members:
            for other in self._scans[partition]:
                if other is scan or other.ended or not other.caught_up:
                    continue
                if other.position == scan.position:
                    self._metrics.scan_members.labels("merged").inc(len(scan.members))
                    other.adopt(scan)
                    break
                scan.meet_at = other.position
        if any(self._waiting.values()):
            self._begin_scans()

    async def close(self) -> None:
        """Ends every scan."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
