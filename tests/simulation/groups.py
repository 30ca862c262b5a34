"""Consumer groups of the modelled broker: sessions, generations, eager rebalances, commits.

The coordinator lives on the broker's side and knows its members by what they send; a member's client
lives in its process. So a stopped process is expelled after its session timeout, learns of it when
it is woken, and what it had sent before arrives under a generation that is gone.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.checker.history import Commit
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Process
from topics.ports import (
    AssignedHook,
    CommitRefused,
    Committed,
    LogError,
    Partition,
    Record,
    RevokedHook,
)

HEARTBEATS_PER_SESSION = 4

_log = logging.getLogger(__name__)


class UnknownMember(LogError):
    """The group has expelled this member."""


@dataclass(slots=True, eq=False)
class _Known:
    """A member as the coordinator knows it."""

    member_id: str
    session_s: float
    until_s: float
    joining: "asyncio.Future[None] | None" = None
    share: frozenset[Partition] = field(default_factory=frozenset)


class Group:
    """The coordinator's side."""

    def __init__(self, cluster: Cluster, name: str, topic: str) -> None:
        self.topic = topic
        self.generation = 0
        self.committed: dict[Partition, Committed] = {}
        self.told: dict[Partition, Committed] = {}
        """What of `committed` all replicas have: questions are answered with this."""
        self._cluster = cluster
        self._name = name
        self._members: dict[str, _Known] = {}
        self._joined = 0
        self._preparing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._former: dict[Partition, str] = {}

    # --- what members ask

    async def join(self, member_id: str, session_s: float) -> tuple[str, int, frozenset[Partition]]:
        """Waits for the rebalance to complete. Returns (member id, generation, share)."""
        cluster = self._cluster
        await cluster.ask(lambda: None)
        it = self._members.get(member_id)
        if it is None:
            self._joined += 1
            it = _Known(f"{self._name}-{self._joined}", session_s, 0.0)
            self._members[it.member_id] = it
        self._heard(it)
        if it.joining is None or it.joining.done():
            it.joining = cluster.loop.create_future()
        joining = it.joining
        self._prepare()
        if all(m.joining is not None for m in self._members.values()):
            cluster.loop.call_for(cluster.process, 0.002, self._complete_if_all)
        await joining
        await asyncio.sleep(cluster.latency_s())
        return it.member_id, self.generation, it.share

    async def heartbeat(self, member_id: str, generation: int) -> bool:
        """True: all is well; False: join again. Raises UnknownMember."""

        def answer() -> bool:
            it = self._members.get(member_id)
            if it is None:
                raise UnknownMember(f"{member_id} is not in the group")
            self._heard(it)
            return not self._preparing and generation == self.generation

        return await self._cluster.ask(answer)

    def leave(self, member_id: str) -> None:
        """Out at once. A member long gone is no error."""
        it = self._members.pop(member_id, None)
        if it is not None:
            if it.joining is not None and not it.joining.done():
                it.joining.set_exception(UnknownMember("left"))
                it.joining.exception()
            self._prepare()
            self._complete_if_all()

    def shake(self) -> None:
        """A rebalance without a reason."""
        self._prepare()

    def commit(
        self,
        member_id: str,
        generation: int,
        offsets: Mapping[Partition, Committed],
        *,
        settled: bool = True,
    ) -> None:
        """What the broker does with a commit when it arrives. Raises CommitRefused.

        One that is not settled waits for replicas: it is on the log, behind it lies what comes after.
        """
        it = self._members.get(member_id)
        if it is None or generation != self.generation:
            raise CommitRefused("the group has another generation")
        self._heard(it)
        self.committed.update(offsets)
        if settled:
            self._settle()
        else:
            seconds = self._cluster.random.uniform(0.1, 2.0)
            self._cluster.loop.call_for(self._cluster.process, seconds, self._settle)
        now_ms, serial = self._cluster.now_ms(), len(self._cluster.archive)
        for partition, at in sorted(offsets.items()):
            self._cluster.commits.append(
                Commit(serial, now_ms, self._name, str(partition), at.offset, at.metadata)
            )

    def _settle(self) -> None:
        self.told = dict(self.committed)

    # --- rebalancing

    def _heard(self, it: _Known) -> None:
        it.until_s = self._cluster.loop.time() + it.session_s
        if self._watching is None:
            self._watching = self._cluster.loop.call_for(
                self._cluster.process, it.session_s, self._expel
            )

    def _expel(self) -> None:
        """Whoever was not heard of for a session timeout is out, unless it waits to join."""
        now_s = self._cluster.loop.time()
        self._watching = None
        for it in list(self._members.values()):
            waiting = it.joining is not None and not it.joining.done()
            if it.until_s <= now_s and not waiting and not self._cluster.away:
                self._cluster.counts["member expelled"] += 1
                self.leave(it.member_id)
        if self._members:
            next_s = max(0.05, min(it.until_s for it in self._members.values()) - now_s)
            self._watching = self._cluster.loop.call_for(self._cluster.process, next_s, self._expel)

    def _prepare(self) -> None:
        if self._preparing or not self._members:
            return
        self._preparing = True
        longest_s = max(it.session_s for it in self._members.values())
        self._deadline = self._cluster.loop.call_for(
            self._cluster.process, longest_s, self._complete
        )

    def _complete_if_all(self) -> None:
        if self._preparing and all(it.joining is not None for it in self._members.values()):
            self._complete()

    def _complete(self) -> None:
        """A new generation of those who came; the others are out."""
        if not self._preparing:
            return
        self._preparing = False
        if self._deadline is not None:
            self._deadline.cancel()
        for it in [it for it in self._members.values() if it.joining is None]:
            self._cluster.counts["too late to join"] += 1
            del self._members[it.member_id]
        self.generation += 1
        self._settle()  # the new generation is on the same log, and told when all replicas have it
        self._cluster.counts["rebalance"] += 1
        self._share_out()
        for it in self._members.values():
            joining, it.joining = it.joining, None
            self._heard(it)
            if joining is not None and not joining.done():
                joining.set_result(None)

    def _share_out(self) -> None:
        random = self._cluster.random
        names = list(self._members)
        if not names:
            return
        random.shuffle(names)
        sticky = random.random() < 0.6
        shares: dict[str, set[Partition]] = {name: set() for name in names}
        for index in range(self._cluster.memory.size(self.topic)):
            partition = Partition(self.topic, index)
            former = self._former.get(partition)
            owner = former if sticky and former in shares else names[index % len(names)]
            assert owner is not None
            shares[owner].add(partition)
            self._former[partition] = owner
        for name, share in shares.items():
            self._members[name].share = frozenset(share)


class SimMember:
    """See `topics.ports.Member`: the client's side."""

    def __init__(
        self,
        cluster: Cluster,
        group: Group,
        hooks: tuple[RevokedHook, AssignedHook],
        session_s: float,
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._revoked_hook, self._assigned_hook = hooks
        self._session_s = session_s
        self._id = ""
        self._generation = -1
        self._held: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._commit: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._changed = asyncio.Event()

    def start(self, process: Process) -> None:
        """Begins to join."""
        self._process = process
        self._task = self._cluster.loop.spawn(process, self._live(), "member")

    async def _live(self) -> None:
        while True:
            try:
                joined = await self._group.join(self._id, self._session_s)
            except LogError:
                self._id = ""
                await asyncio.sleep(0.1)
                continue
            self._id, self._generation, self._held = joined
            self._paused, self._positions = set(self._held), {}
            await self._assigned_hook(self._held)
            await self._until_told()
            held, self._held = self._held, frozenset()
            if self._commit is not None and not self._commit.done():
                self._commit.cancel()
                await asyncio.wait({self._commit})
            await self._revoked_hook(held)

    async def _until_told(self) -> None:
        """Heartbeats until the group wants everybody to join again."""
        while True:
            await asyncio.sleep(self._session_s / HEARTBEATS_PER_SESSION)
            try:
                if not await self._group.heartbeat(self._id, self._generation):
                    return
            except UnknownMember:
                self._id = ""
                return
            except LogError:
                continue

    # --- topics.ports.Member

    @property
    def member_id(self) -> str:
        return self._id

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
        self._changed.set()

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 500) -> list[Record]:
        loop = self._cluster.loop
        until_s = loop.time() + max_wait_seconds
        while True:
            wanted = {p: self._positions[p] for p in sorted(self._held - self._paused)}
            records = self._cluster.take(wanted, max_records)
            if records:
                await asyncio.sleep(self._cluster.latency_s())
                fresh = []
                for record in records:
                    partition = Partition(record.topic, record.partition)
                    readable = partition in self._held and partition not in self._paused
                    if readable and self._positions.get(partition) == record.offset:
                        self._positions[partition] = record.offset + 1
                        fresh.append(record)
                if fresh:
                    return fresh
            left_s = until_s - loop.time()
            if left_s <= 0:
                await asyncio.sleep(0)
                return []
            await self._cluster.wait(list(wanted), min(left_s, 0.25))

    async def commit(self, offsets: Mapping[Partition, Committed]) -> None:
        if self._commit is not None and not self._commit.done():
            if not self._commit.cancelling():
                raise LogError("another commit is under way")
            await asyncio.wait({self._commit})
        if not set(offsets) <= self._held:
            raise CommitRefused("a partition is not assigned any more")
        commit = self._commit = self._cluster.loop.create_task(self._commit_once(dict(offsets)))
        try:
            await asyncio.wait({commit})
        except asyncio.CancelledError:
            commit.cancel()
            raise
        if commit.cancelled():
            raise CommitRefused("the partitions were revoked meanwhile")
        commit.result()

    async def _commit_once(self, offsets: dict[Partition, Committed]) -> None:
        """Once sent it arrives, whatever becomes of the process and of this task."""
        cluster, loop = self._cluster, self._cluster.loop
        answered: asyncio.Future[None] = loop.create_future()
        member_id, generation = self._id, self._generation
        unknown = cluster.random.random() < cluster.weather.commit_unknown
        deaf = not cluster.hears("all")

        def arrive() -> None:
            error: LogError | None = None
            if cluster.away or deaf:
                error = LogError("the broker is away")
            else:
                try:
                    self._group.commit(member_id, generation, offsets, settled=not unknown)
                except CommitRefused as refused:
                    error = refused
            if unknown:
                cluster.counts["commit unknown"] += 1
                error = LogError("no answer to a commit")
            loop.call_for(cluster.process, cluster.latency_s(), tell, error)

        def tell(error: LogError | None) -> None:
            if answered.done():
                return
            if error is None:
                answered.set_result(None)
            else:
                answered.set_exception(error)

        loop.call_for(cluster.process, cluster.latency_s(), arrive)
        await answered

    async def close(self) -> None:
        self._held = frozenset()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._id:
            try:
                await self._cluster.ask(lambda: self._group.leave(self._id))
            except LogError:
                return  # the session timeout will tell
