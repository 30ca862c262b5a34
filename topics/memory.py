"""The log in this process: the same contract as Kafka's, for tests and simulations.

Records are kept as bytes, append times come from a clock that the caller may own, and what goes
wrong on a network can be asked for: `inject` returns a handle that says whether it happened.
Several components may share one `MemoryLog`, each as if it had a connection of its own.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from topics.kafka.partitioning import partition_of
from topics.memory_clients import Fault, FaultKind, MemoryAppender, MemoryTail
from topics.memory_group import MemoryGroup, MemoryMember
from topics.memory_topic import MemoryTopic
from topics.ports import (
    AppendFailed,
    AssignedHook,
    Committed,
    GroupMember,
    LogError,
    OffsetOutOfRange,
    Partition,
    Record,
    RecordTooLarge,
    RevokedHook,
    TopicSpec,
    TopicState,
)
from topics.read_size import record_bytes

RECORD_BYTES_MAX = 3 * 1024 * 1024
__all__ = ["Fault", "FaultKind", "MemoryAppender", "MemoryLog", "MemoryMember", "MemoryTail"]


class MemoryLog:
    """See `topics.ports.Log`. `clock_ms` gives append times; without it, the wall clock does."""

    def __init__(
        self,
        *,
        clock_ms: Callable[[], int] | None = None,
        append_timeout_seconds: float = 15.0,
    ) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.append_timeout_seconds = append_timeout_seconds
        self._clock_ms = clock_ms or (lambda: int(time.time() * 1000))
        self._topics: dict[str, MemoryTopic] = {}
        self._groups: dict[str, MemoryGroup] = {}
        self._counted: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Future[None]] = set()

    # --- what tests do to it

    def stop(self) -> None:
        """The broker is away: questions fail, appends wait, readers see nothing new."""
        self.running.clear()

    def start(self) -> None:
        """The broker is back, with everything it had."""
        self.running.set()
        self.wake()

    def trim(self, partition: Partition, offset: int) -> None:
        """Retention: everything before `offset` is gone."""
        self._topic(partition.topic).trim(partition.index, offset)

    def delete(self, name: str) -> None:
        """Deletes a topic; making it again gives it another topic id."""
        del self._topics[name]
        self._counted.pop(name, None)

    def inject(
        self,
        kind: FaultKind,
        matches: Callable[[Record], bool] = lambda _: True,
        *,
        topic: str | None = None,
        count: int = 1,
        delay_seconds: float = 0.05,
    ) -> Fault:
        """Arms a fault for the next `count` appends to `topic` (any) for which `matches` holds."""
        fault = Fault(
            kind, lambda it: topic in {None, it.topic} and matches(it), count, delay_seconds
        )
        self._faults.append(fault)
        return fault

    def records(self, partition: Partition) -> list[Record]:
        """All that is on a partition."""
        return list(self._topic(partition.topic).records[partition.index])

    # --- shared by appenders, readers and groups

    def check_running(self) -> None:
        """Raises LogError while the broker is away."""
        if not self.running.is_set():
            raise LogError("the broker is away")

    def size(self, topic: str) -> int:
        """The number of partitions. Raises LogError if there is no such topic."""
        return len(self._topic(topic).records)

    def _topic(self, name: str) -> MemoryTopic:
        topic = self._topics.get(name)
        if topic is None:
            raise LogError(f"there is no topic {name}")
        return topic

    def background(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        """Runs something to its end and keeps hold of it meanwhile."""

        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def wake(self) -> None:
        """Readers look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def next_fault(self, record: Record) -> Fault | None:
        """The fault that this append meets."""
        for fault in self._faults:
            if fault.fired_count < fault.count and fault.matches(record):
                fault.fired_count += 1
                return fault
        return None

    def store(self, unsent: Record) -> Record:
        """Puts a record at the end of its partition. Raises AppendFailed."""
        topic = self._topics.get(unsent.topic)
        if topic is None or unsent.partition >= len(topic.records):
            raise AppendFailed(f"there is no partition {unsent.topic}/{unsent.partition}")
        limit = int(topic.spec.configs.get("max.message.bytes", RECORD_BYTES_MAX))
        if record_bytes(unsent) > limit:
            raise RecordTooLarge(f"a record of {record_bytes(unsent)} bytes, {limit} allowed")
        end = topic.end(unsent.partition)
        record = unsent._replace(offset=end, time_ms=self._clock_ms())
        topic.records[unsent.partition].append(record)
        self.wake()
        return record

    async def fetch(
        self,
        positions: Callable[[], Mapping[Partition, int]],
        max_wait_seconds: float,
        max_records: int,
    ) -> list[Record]:
        """What lies at the positions, waiting for it for a while. Raises OffsetOutOfRange."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + max_wait_seconds
        await asyncio.sleep(0)
        while True:
            if found := self._take(positions(), max_records):
                return found
            left_s = until_s - loop.time()
            if left_s <= 0:
                return []
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left_s)
            finally:
                self._waiters.discard(waiter)

    def _take(self, positions: Mapping[Partition, int], max_records: int) -> list[Record]:
        found: list[Record] = []
        if not self.running.is_set():
            return found
        for partition, position in positions.items():
            topic = self._topics.get(partition.topic)
            if topic is None:
                continue
            start = topic.starts[partition.index]
            if not start <= position <= topic.end(partition.index):
                raise OffsetOutOfRange(f"{partition}: {position} is not on the log")
            first = position - start
            found += topic.records[partition.index][first : first + max_records - len(found)]
            if len(found) >= max_records:
                break
        return found

    # --- topics.ports.Log

    def partition_of_key(self, topic: str, key: bytes) -> int:
        if topic not in self._counted:
            raise LogError(f"partition_count of {topic} was not awaited yet")
        return partition_of(key, self._counted[topic])

    async def partition_count(self, topic: str, *, fresh: bool = False) -> int:  # noqa: ARG002  always
        await self._asked()
        self._counted[topic] = self.size(topic)
        return self._counted[topic]

    async def appender(self, *, linger_ms: int = 0) -> MemoryAppender:  # noqa: ARG002  no batches
        await self._asked()
        return MemoryAppender(self)

    async def tail(self, positions: Mapping[Partition, int]) -> MemoryTail:
        await self._asked()
        for partition in positions:
            self._topic(partition.topic)
        return MemoryTail(self, positions)

    async def join(
        self,
        group: str,
        topic: str,
        *,
        on_revoked: RevokedHook,
        on_assigned: AssignedHook,
        instance_id: str | None = None,
        session_timeout_seconds: float = 10.0,
    ) -> MemoryMember:
        await self._asked()
        self._topic(topic)
        it = self._groups.setdefault(group, MemoryGroup(self, group, topic))
        hooks = (on_revoked, on_assigned)
        member = MemoryMember(self, it, hooks, instance_id, session_timeout_seconds)
        it.join(member)
        return member

    async def start_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self._asked()
        return {p: self._topic(p.topic).starts[p.index] for p in partitions}

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self._asked()
        return {p: self._topic(p.topic).end(p.index) for p in partitions}

    async def offsets_at(self, times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        await self._asked()
        found = {}
        for partition, time_ms in times_ms.items():
            later = (it.offset for it in self.records(partition) if it.time_ms >= time_ms)
            found[partition] = next(later, self._topic(partition.topic).end(partition.index))
        return found

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        await self._asked()
        known = self._groups[group].committed if group in self._groups else {}
        return {p: known[p] for p in partitions if p in known}

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        await self._asked()
        return {name: self._topics[name].state() for name in topics if name in self._topics}

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        await self._asked()
        missing = [spec for spec in specs if spec.name not in self._topics]
        for spec in missing:
            empty: list[list[Record]] = [[] for _ in range(spec.partitions)]
            self._topics[spec.name] = MemoryTopic(
                spec, uuid.uuid4().hex, [0] * spec.partitions, empty
            )
        return [spec.name for spec in missing]

    async def grow(self, counts: Mapping[str, int]) -> list[str]:
        await self._asked()
        there = sorted(name for name in counts if name in self._topics)
        grown = [name for name in there if self._topics[name].grow(counts[name])]
        for group in self._groups.values():
            if group.topic in grown:
                group.changed()
        return grown

    async def members(self, group: str) -> list[GroupMember]:
        await self._asked()
        known = self._groups.get(group)
        return known.members() if known is not None else []

    async def remove_member(self, group: str, member_id: str) -> None:
        await self._asked()
        if group in self._groups:
            self._groups[group].remove(member_id)

    async def close(self) -> None:
        """Nothing: others may still use the log."""

    async def _asked(self) -> None:
        await asyncio.sleep(0)
        self.check_running()
