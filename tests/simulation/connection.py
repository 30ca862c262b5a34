"""One process's connection to the modelled broker: `topics.ports.Log`, its appender and its tail."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.simulation.cluster import Cluster
from tests.simulation.groups import Group, SimMember
from tests.simulation.loop import Process
from topics.kafka.partitioning import partition_of
from topics.memory_clients import within
from topics.ports import (
    Appended,
    AppendFailed,
    AppendUnknown,
    AssignedHook,
    Committed,
    GroupMember,
    Headers,
    LogError,
    Partition,
    Record,
    RevokedHook,
    TopicSpec,
    TopicState,
)
from topics.read_size import READ_BYTES_MAX

Ack = asyncio.Future[Appended]
APPEND_TIMEOUT_S = 4.0
LATE_S = 2.5
"""How much later than its `AppendUnknown` a record may still land, at most."""


@dataclass(slots=True, eq=False)
class _Sent:
    record: Record
    ack: Ack


class SimAppender:
    """See `topics.ports.Appender`: in order per appender, and never a gap."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._loop = cluster.loop
        self._process = process
        self._under_way: deque[_Sent] = deque()
        self._open: dict[int, Ack] = {}
        self._refusing: AppendFailed | None = None
        self._last_s = 0.0
        self._last_ack_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> Ack:
        ack: Ack = self._loop.create_future()
        ack.add_done_callback(_retrieved)
        if self._refusing is not None:
            ack.set_exception(self._refusing)
            return ack
        self._under_way.append(_Sent(Record(topic, partition, -1, -1, key, value, headers), ack))
        self._open[hash(ack)] = ack
        self._last_s = max(self._last_s, self._loop.time() + self._cluster.latency_s())
        self._at(self._last_s, self._arrive)
        return ack

    def _at(self, when_s: float, call: object, *args: object) -> None:
        """On the broker's side: it happens whether the process still runs or not."""
        delay_s = when_s - self._loop.time()
        self._loop.call_for(self._cluster.process, delay_s, call, *args)  # type: ignore[arg-type]

    def _arrive(self) -> None:
        if not self._under_way:
            return
        if self._cluster.away:
            if self._timer is None:
                self._timer = self._loop.call_for(
                    self._cluster.process, APPEND_TIMEOUT_S, self._give_up
                )
                self._loop.spawn(self._cluster.process, self._when_back())
            return
        if self._process.killed and self._cluster.random.random() < 0.3:
            self._cluster.counts["killed before the record left"] += 1
            self._under_way.clear()  # the rest was never sent
            return
        self._land(self._under_way.popleft())

    async def _when_back(self) -> None:
        await self._cluster.returned()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._under_way and not self._cluster.away:
            self._arrive()

    def _land(self, sent: _Sent) -> None:
        fault = self._cluster.fault(sent.record)
        if fault == "refused":
            # what follows on the same partition would leave a gap: an idempotent producer never does
            self._fail(sent.ack, AppendFailed("refused by the broker"))
            place = sent.record.topic, sent.record.partition
            kept = [it for it in self._under_way if (it.record[0], it.record[1]) != place]
            self._under_way = deque(kept)
            self._break(lands=True)
            return
        if fault in {"append_lost", "append_late"}:
            self._under_way.appendleft(sent)
            self._break(lands=fault == "append_late")
            return
        try:
            stored = self._cluster.store(sent.record, self._process)
        except AppendFailed as error:
            self._fail(sent.ack, error)
            return
        told = stored.offset
        if fault == "duplicate":
            again = self._cluster.random.random()
            if again < 0.5:
                self._cluster.store(sent.record, self._process)
            else:
                self._at(self._loop.time() + again * 0.1, self._store_late, [sent])
            told = -1 if again < 0.3 else told
        if fault == "ack_lost":
            self._break(lands=True)
            return
        self._last_ack_s = max(self._last_ack_s, self._loop.time() + self._cluster.latency_s())
        acked = Appended(stored.partition, told, stored.time_ms)
        self._at(self._last_ack_s, self._acknowledge, sent.ack, acked)

    def _acknowledge(self, ack: Ack, appended: Appended) -> None:
        self._open.pop(hash(ack), None)
        if not ack.done():
            ack.set_result(appended)

    def _fail(self, ack: Ack, error: LogError) -> None:
        self._open.pop(hash(ack), None)
        if not ack.done():
            ack.set_exception(error)

    def _give_up(self) -> None:
        self._timer = None
        self._break(lands=True)

    def _break(self, *, lands: bool) -> None:
        """All that is open is in doubt: a first part of it may land yet, in order."""
        self._refusing = AppendFailed("the appender is broken: an append before was in doubt")
        rest, self._under_way = list(self._under_way), deque()
        if rest and lands:
            random = self._cluster.random
            landing = rest[: 1 + int(random.random() * len(rest))]
            self._at(self._loop.time() + random.random() * LATE_S, self._store_late, landing)
        opened, self._open = list(self._open.values()), {}
        for ack in opened:
            if not ack.done():
                ack.set_exception(AppendUnknown("no acknowledgement came"))

    def _store_late(self, landing: list[_Sent]) -> None:
        if self._cluster.away:
            return  # its connection is long gone
        self._cluster.counts["landed late"] += 1
        for sent in landing:
            try:
                self._cluster.store(sent.record, self._process)
            except AppendFailed:
                return

    async def close(self, timeout_seconds: float = 5.0) -> None:
        if self._refusing is None:
            self._refusing = AppendFailed("the appender is closed")
        if self._open and timeout_seconds > 0:
            await asyncio.wait(list(self._open.values()), timeout=timeout_seconds)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open:
            self._break(lands=True)


class SimTail:
    """See `topics.ports.Tail`."""

    def __init__(self, cluster: Cluster, positions: Mapping[Partition, int]) -> None:
        self._cluster = cluster
        self._positions = dict(positions)

    async def read(
        self,
        max_wait_seconds: float = 0.5,
        max_records: int = 1000,
        max_bytes: int = READ_BYTES_MAX,
    ) -> list[Record]:
        until_s = self._cluster.loop.time() + max_wait_seconds
        while True:
            before = self._positions
            records = within(max_bytes, self._cluster.take(before, max_records))
            if records:
                await asyncio.sleep(self._cluster.latency_s())
                if self._positions is not before:
                    return []  # assigned anew meanwhile
                for record in records:
                    before[Partition(record.topic, record.partition)] = record.offset + 1
                return records
            left_s = until_s - self._cluster.loop.time()
            if left_s <= 0:
                await asyncio.sleep(0)
                return []
            await self._cluster.wait(list(self._positions), left_s)

    def position(self, partition: Partition) -> int:
        return self._positions[partition]

    def assign(self, positions: Mapping[Partition, int]) -> None:
        self._positions = dict(positions)

    async def close(self) -> None:
        self._positions = {}


class SimLog:
    """See `topics.ports.Log`: the connection of one process."""

    def __init__(self, cluster: Cluster, groups: dict[str, Group], process: Process) -> None:
        self._cluster = cluster
        self._groups = groups
        self._process = process
        self._counted: dict[str, int] = {}

    def partition_of_key(self, topic: str, key: bytes) -> int:
        if topic not in self._counted:
            raise LogError(f"partition_count of {topic} was not awaited yet")
        return partition_of(key, self._counted[topic])

    async def partition_count(self, topic: str, *, fresh: bool = False) -> int:
        if fresh or topic not in self._counted:
            self._counted[topic] = await self._cluster.ask(lambda: self._cluster.memory.size(topic))
        return self._counted[topic]

    async def appender(self, *, linger_ms: int = 0) -> SimAppender:
        await self._cluster.ask(lambda: None)
        return SimAppender(self._cluster, self._process)

    async def tail(self, positions: Mapping[Partition, int]) -> SimTail:
        await asyncio.sleep(0)
        return SimTail(self._cluster, positions)

    async def join(
        self,
        group: str,
        topic: str,
        *,
        on_revoked: RevokedHook,
        on_assigned: AssignedHook,
        instance_id: str | None = None,
        session_timeout_seconds: float = 10.0,
    ) -> SimMember:
        await self._cluster.ask(lambda: None)
        known = self._groups.get(group)
        if known is None:
            known = self._groups[group] = Group(self._cluster, group, topic)
        member = SimMember(self._cluster, known, (on_revoked, on_assigned), session_timeout_seconds)
        member.start(self._process)
        return member

    async def start_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        memory = self._cluster.memory
        return await self._cluster.ask(
            lambda: {p: memory._topic(p.topic).starts[p.index] for p in partitions}
        )

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        memory = self._cluster.memory
        return await self._cluster.ask(
            lambda: {p: memory._topic(p.topic).end(p.index) for p in partitions}
        )

    async def offsets_at(self, times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        def answer() -> dict[Partition, int]:
            found = {}
            for partition, time_ms in times_ms.items():
                topic = self._cluster.memory._topic(partition.topic)
                later = (
                    it.offset for it in topic.records[partition.index] if it.time_ms >= time_ms
                )
                found[partition] = next(later, topic.end(partition.index))
            return found

        return await self._cluster.ask(answer)

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        def answer() -> dict[Partition, Committed]:
            known = self._groups[group].told if group in self._groups else {}
            return {p: known[p] for p in partitions if p in known}

        return await self._cluster.ask(answer)

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        return await self._cluster.memory.describe(topics)

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        return await self._cluster.memory.create(specs)

    async def grow(self, counts: Mapping[str, int]) -> list[str]:
        await self._cluster.ask(lambda: None)
        return await self._cluster.memory.grow(counts)

    async def members(self, group: str) -> list[GroupMember]:
        return []  # nobody is told of deaths here: sessions find them

    async def remove_member(self, group: str, member_id: str) -> None:
        await self._cluster.ask(lambda: self._groups[group].leave(member_id))

    async def close(self) -> None:
        """Nothing of it is kept."""


def _retrieved(ack: Ack) -> None:
    """An append that nobody awaits must not be reported as a lost exception."""
    if not ack.cancelled():
        ack.exception()


def qs_of(cluster: Cluster, topics: Iterable[str]) -> list[Partition]:
    """All partitions of these topics."""
    return [Partition(t, i) for t in topics for i in range(cluster.memory.size(t))]
