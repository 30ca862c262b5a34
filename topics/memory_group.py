"""Consumer groups of the in-process log: eager rebalances, generations, refused commits."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from topics.ports import (
    AssignedHook,
    CommitRefused,
    Committed,
    GroupMember,
    LogError,
    Partition,
    Record,
    RevokedHook,
)

if TYPE_CHECKING:
    from topics.memory import MemoryLog

HEARTBEAT_SECONDS = 0.02

_log = logging.getLogger(__name__)


class MemoryMember:
    """See `topics.ports.Member`. `freeze` and `thaw` are what a stopped or killed process does."""

    def __init__(
        self,
        log: "MemoryLog",
        group: "MemoryGroup",
        hooks: tuple[RevokedHook, AssignedHook],
        instance_id: str | None,
        session_seconds: float,
    ) -> None:
        self.instance_id = instance_id
        self.session_seconds = session_seconds
        self.closed = False
        self.awake = asyncio.Event()
        self.awake.set()
        self._log = log
        self._group = group
        self._revoked_hook, self._assigned_hook = hooks
        self._id = ""
        self._generation = -1
        self._told_assigned = False
        self._held: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._commit: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def member_id(self) -> str:
        """The id the group knows this member by; '' before the first join."""
        return self._id

    def freeze(self) -> None:
        """The process stops: no hook runs; the group expels the member after its session timeout."""
        self.awake.clear()
        self._expiry = asyncio.get_running_loop().call_later(
            self.session_seconds, self._group.remove, self._id
        )

    def thaw(self) -> None:
        """The process goes on; if it was expelled, it learns so by its next heartbeat."""
        self.awake.set()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if not self._group.knows(self):
            self._group.rejoin_soon(self)

    # --- called by the group

    def known_as(self, member_id: str) -> None:
        """The group took this member in."""
        self._id = member_id

    async def revoke(self) -> None:
        """Ends an open commit, then tells the owner."""
        held, self._held = self._held, frozenset()
        if self._commit is not None and not self._commit.done():
            self._commit.cancel()
            await asyncio.wait({self._commit})
        if self._told_assigned:
            self._told_assigned = False
            await _hook(self._revoked_hook, held)

    async def assign(self, partitions: frozenset[Partition], generation: int) -> None:
        """A new generation: everything is paused and without a position."""
        self._generation, self._held = generation, partitions
        self._told_assigned = True
        self._paused = set(partitions)
        self._positions = {}
        await _hook(self._assigned_hook, partitions)

    # --- topics.ports.Member

    def assignment(self) -> frozenset[Partition]:
        return self._held

    def seek(self, partition: Partition, offset: int) -> None:
        if partition in self._held:
            self._positions[partition] = offset

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._paused.update(p for p in partitions if p in self._held)

    def resume(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            if partition in self._held:
                if partition not in self._positions:
                    raise ValueError(f"{partition}: seek comes before resume")
                self._paused.discard(partition)
        self._log.wake()

    def _readable(self) -> dict[Partition, int]:
        return {p: self._positions[p] for p in self._held - self._paused}

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 500) -> list[Record]:
        records = await self._log.fetch(self._readable, max_wait_seconds, max_records)
        for record in records:
            self._positions[Partition(record.topic, record.partition)] = record.offset + 1
        return records

    async def commit(self, offsets: Mapping[Partition, Committed]) -> None:
        if self._commit is not None and not self._commit.done():
            if not self._commit.cancelling():
                raise LogError("another commit is under way")
            await asyncio.wait({self._commit})
        if not set(offsets) <= self._held:
            raise CommitRefused("a partition is not assigned any more")
        request = self._group.commit(self, self._generation, dict(offsets))
        self._commit = asyncio.ensure_future(request)
        try:
            await asyncio.wait({self._commit})
        except asyncio.CancelledError:
            self._commit.cancel()
            raise
        if self._commit.cancelled():
            raise CommitRefused("the partitions were revoked meanwhile")
        self._commit.result()

    async def close(self) -> None:
        self.closed = True
        self._held = frozenset()
        if self._expiry is not None:
            self._expiry.cancel()
        self._group.remove(self._id)


class MemoryGroup:
    """One group: who is in it, its generation, what was committed."""

    def __init__(self, log: "MemoryLog", name: str, topic: str) -> None:
        self.topic = topic
        self.generation = 0
        self.committed: dict[Partition, Committed] = {}
        self._log = log
        self._name = name
        self._members: dict[str, MemoryMember] = {}
        self._joined = 0
        self._dirty = False
        self._rebalancing: asyncio.Task[None] | None = None
        self._held: dict[str, frozenset[Partition]] = {}

    def knows(self, member: MemoryMember) -> bool:
        """True while the member is in the group."""
        return self._members.get(member.member_id) is member

    def members(self) -> list[GroupMember]:
        """All of them; nobody here has a client of its own."""
        return [GroupMember(member_id, "") for member_id in self._members]

    def join(self, member: MemoryMember) -> None:
        """Takes a member in; one with the instance id of another takes its place, silently."""
        self._joined += 1
        member_id = f"{self._name}-{self._joined:06d}"
        member.known_as(member_id)
        for old_id, old in self._members.items():
            if member.instance_id is not None and old.instance_id == member.instance_id:
                del self._members[old_id]
                self._members[member_id] = member
                if (held := self._held.pop(old_id, None)) is not None:
                    self._held[member_id] = held
                    self._start(member.assign(held, self.generation))
                    return
                break
        self._members[member_id] = member
        self.changed()

    def remove(self, member_id: str) -> None:
        """Leaves on behalf of a member; one that still lives learns of it and joins again."""
        member = self._members.pop(member_id, None)
        self._held.pop(member_id, None)
        if member is None:
            return
        if not member.closed and member.awake.is_set():
            self.rejoin_soon(member)
        self.changed()

    def rejoin_soon(self, member: MemoryMember) -> None:
        """After a heartbeat, as a member that the group does not know any more."""

        async def rejoin() -> None:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await member.awake.wait()
            if not member.closed and not self.knows(member):
                await member.revoke()
                self.join(member)

        self._start(rejoin())

    def changed(self) -> None:
        """Rebalances, once more if that is already under way."""
        self._dirty = True
        if self._rebalancing is None or self._rebalancing.done():
            self._rebalancing = self._start(self._rebalance())

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        return self._log.background(work)

    async def _rebalance(self) -> None:
        while self._dirty:
            await asyncio.sleep(0)  # members that join in one turn share one rebalance
            self._dirty = False
            await asyncio.gather(*(self._revoke(m) for m in list(self._members.values())))
            await self._log.running.wait()
            if self._dirty:
                continue
            self.generation += 1
            members = sorted(self._members.items())
            shares: dict[str, set[Partition]] = {member_id: set() for member_id, _ in members}
            for index in range(self._log.size(self.topic) if members else 0):
                shares[members[index % len(members)][0]].add(Partition(self.topic, index))
            self._held = {member_id: frozenset(share) for member_id, share in shares.items()}
            await asyncio.gather(*(m.assign(self._held[i], self.generation) for i, m in members))

    async def _revoke(self, member: MemoryMember) -> None:
        """A member that does not answer within its session timeout is out."""
        try:
            await asyncio.wait_for(member.awake.wait(), member.session_seconds)
        except TimeoutError:
            self._members.pop(member.member_id, None)
            return
        if self.knows(member):
            await member.revoke()

    async def commit(
        self, member: MemoryMember, generation: int, offsets: dict[Partition, Committed]
    ) -> None:
        """Raises CommitRefused for a member or generation that is not the current one."""
        await asyncio.sleep(0)
        self._log.check_running()
        if not self.knows(member) or generation != self.generation:
            raise CommitRefused("the group has another generation")
        self.committed.update(offsets)


async def _hook(
    hook: Callable[[frozenset[Partition]], Awaitable[None]], partitions: frozenset[Partition]
) -> None:
    try:
        await hook(partitions)
    except Exception:  # noqa: BLE001
        # as the real client does: a rebalance ends whatever its listeners do
        _log.exception("a rebalance hook failed")
