"""The log as the rest of the system sees it: append, tail, group, ask.

Two implementations pass one contract suite: `topics.kafka` (the proof) and `topics.memory` (speed).
All partitions are written `(topic, partition)`; positions are offsets of the next record to read.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from core.errors import InferlogError
from topics.read_size import READ_BYTES_MAX

Headers = tuple[tuple[str, bytes], ...]


class Partition(NamedTuple):
    """A topic partition; `str()` gives the `q` of events, `topic/partition`."""

    topic: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it

    def __str__(self) -> str:
        return f"{self.topic}/{self.index}"


def parse_partition(text: str) -> Partition:
    """The inverse of `str(partition)`. Raises ValueError."""
    topic, _, index = text.rpartition("/")
    if not topic or not index.isdecimal():
        raise ValueError(f"not a partition: {text[:80]!r}")
    return Partition(topic, int(index))


class Record(NamedTuple):
    """A record as it was read; `time_ms` is the broker's append time."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Appended(NamedTuple):
    """Where an acknowledged record lies; `time_ms` is its append time, None if not told.

    `offset` is -1 where the broker only said that it has the record already (after a retry).
    """

    partition: int
    offset: int
    time_ms: int | None


class Committed(NamedTuple):
    """A committed offset with its metadata, from one answer of the broker."""

    offset: int
    metadata: str


class GroupMember(NamedTuple):
    """A member as its group knows it; `client_id` is what its process calls itself."""

    member_id: str
    client_id: str


class LogError(InferlogError):
    """The log could not do it; nothing is known to have happened unless a subclass says so."""


class AppendFailed(LogError):
    """The record was certainly not appended (refused for its size, unknown topic, closed)."""


class RecordTooLarge(AppendFailed):
    """Refused for its size, before or by the broker: certainly not appended."""


class AppendUnknown(LogError):
    """No acknowledgement came: the record may or may not be on the log, now or later."""


class CommitRefused(LogError):
    """The group no longer knows this member or generation: nothing was committed."""


class OffsetOutOfRange(LogError):
    """A position lies before the log start or beyond its end."""


class Appender(Protocol):
    """Appends records with `acks=all`, idempotently, in order per partition.

    After an `AppendUnknown` the appender must be closed and a new one made: order and
    deduplication are no longer certain.
    """

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> Awaitable[Appended]:
        """Hands the record over at once, in call order; the awaitable ends with the ack.

        The awaitable raises RecordTooLarge, AppendFailed or AppendUnknown. It may be left unawaited
        for a while, but not for ever.
        """
        ...

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Flushes within the limit, then lets go; what is unacknowledged raises AppendUnknown."""
        ...


class Tail(Protocol):
    """Reads given partitions by manual assignment: no group, no rebalance."""

    async def read(
        self,
        max_wait_seconds: float = 0.5,
        max_records: int = 1000,
        max_bytes: int = READ_BYTES_MAX,
    ) -> list[Record]:
        """The next records of all partitions, in offset order per partition; [] after the wait.

        At most `max_records`, and no more once they fill `max_bytes`: the last may go beyond it. Others
        have a turn before what is left is given.

        Survives a broker that is away (keeps trying). Raises OffsetOutOfRange if a position is not
        on the log any more.
        """
        ...

    def position(self, partition: Partition) -> int:
        """The offset after the last record returned (the start offset at first)."""
        ...

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """Replaces what is read; positions of partitions that stay must be given again."""
        ...

    async def close(self) -> None: ...


class Member(Protocol):
    """A member of a consumer group over one topic. Never commits or resets by itself.

    After an assignment every new partition is paused until `seek` and `resume` are called, so that
    nothing is read before ownership is settled.
    """

    @property
    def member_id(self) -> str:
        """The id the group knows this member by; '' before the first join."""
        ...

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 500) -> list[Record]:
        """The next records of all assigned, unpaused partitions.

        Must be called at least every max poll interval, also while everything is paused.
        """
        ...

    def assignment(self) -> frozenset[Partition]: ...
    def seek(self, partition: Partition, offset: int) -> None: ...
    def pause(self, partitions: Iterable[Partition]) -> None: ...
    def resume(self, partitions: Iterable[Partition]) -> None: ...

    async def commit(self, offsets: Mapping[Partition, Committed]) -> None:
        """One attempt under the current generation, bounded in time.

        A coordinator that is away is waited for: what never reached one was no attempt.
        Raises CommitRefused if the generation is gone; LogError if the outcome is unknown.
        """
        ...

    async def close(self) -> None:
        """Leaves the group, so that others need not wait for the session timeout."""
        ...


RevokedHook = Callable[[frozenset[Partition]], Awaitable[None]]
AssignedHook = Callable[[frozenset[Partition]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be; `configs` are Kafka's own topic configuration names."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is; `topic_id` changes when it is deleted and made again ('' if not told)."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]
    topic_id: str = ""


class Log(Protocol):
    """A cluster. Every call is bounded in time and raises LogError when the broker is away."""

    def partition_of_key(self, topic: str, key: bytes) -> int:
        """Kafka's default partitioner (murmur2 as Java's) over the topic's current partitions.

        Only after `partition_count` was awaited for that topic.
        """
        ...

    async def partition_count(self, topic: str, *, fresh: bool = False) -> int:
        """Raises LogError if there is no such topic. Cached for a short while, unless `fresh`."""
        ...

    async def appender(self, *, linger_ms: int = 0) -> Appender: ...

    async def tail(self, positions: Mapping[Partition, int]) -> Tail: ...

    async def join(
        self,
        group: str,
        topic: str,
        *,
        on_revoked: RevokedHook,
        on_assigned: AssignedHook,
        instance_id: str | None = None,
        session_timeout_seconds: float = 10.0,
    ) -> Member:
        """Joins the group. The hooks run inside the rebalance and must be quick.

        `on_revoked` is given all partitions held so far and returns only when no commit is under
        way any more; `on_assigned` the new ones, all paused.
        """
        ...

    async def start_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]: ...

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]: ...

    async def offsets_at(self, times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        """The first offset appended at or after each time; the end offset if there is none."""
        ...

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        """Offset and metadata from one answer; partitions without a commit are left out."""
        ...

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        """Topics that do not exist are left out."""
        ...

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Creates the missing ones and returns their names; an existing topic is left alone."""
        ...

    async def grow(self, counts: Mapping[str, int]) -> list[str]:
        """Adds partitions where a topic has fewer than given here; returns the names of those.

        Topics that do not exist are left out. Nothing ever shrinks.
        """
        ...

    async def members(self, group: str) -> list[GroupMember]:
        """Who is in the group now, also those that died and were not missed yet."""
        ...

    async def remove_member(self, group: str, member_id: str) -> None:
        """Leaves the group for a member that died. A member long gone is no error."""
        ...

    async def close(self) -> None: ...
