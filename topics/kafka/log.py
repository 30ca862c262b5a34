"""A Kafka cluster as a `topics.ports.Log`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from topics.kafka.administration import Administration
from topics.kafka.appender import KafkaAppender
from topics.kafka.clients import OnRebuild, settled, started
from topics.kafka.member import KafkaMember
from topics.kafka.partitioning import partition_of
from topics.kafka.reading import OpenConsumer
from topics.kafka.security import Security
from topics.kafka.tail import FETCH_WAIT_MS, KafkaTail
from topics.kafka.tail_client import TailClient
from topics.ports import (
    AssignedHook,
    Committed,
    GroupMember,
    Partition,
    RevokedHook,
    TopicSpec,
    TopicState,
)

MEMBER_FETCH_WAIT_MS = 200
"""How long the broker holds a fetch that finds nothing. A fetch that is out delays a partition that is
resumed or assigned meanwhile: 500 here made a takeover take 1.0 s instead of 0.5. Tails wait longer."""
GROUP_FETCH_BYTES = 128 * 1024
"""Of each partition at once. A worker reads what it has room for, pauses, and seeks: what lies fetched
beyond that is dropped and fetched again. With megabytes of it, compressed, a backlog of a million cost
3.2 times the CPU per request and 2 GiB of memory (docs/performance.md). A larger record comes alone."""
MAX_POLL_SECONDS = 300.0
REBALANCE_SECONDS_MAX = 5.0
# A group learns of added partitions so soon; their requests have a deadline to start by.
MEMBER_METADATA_SECONDS = 5.0
TAIL_METADATA_MS = 60_000


class KafkaLog:
    """See `topics.ports.Log`. Nothing is sent before the first call.

    `request_timeout_seconds` bounds every question and every connection, `append_timeout_seconds`
    the wait for an acknowledgement. `rebuilds` counts clients that were given up, by (client, reason)
    as `clients.OnRebuild` names them; `on_rebuild` is told of each.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str = "inferlog",
        security: Security | None = None,
        request_timeout_seconds: float = 10.0,
        append_timeout_seconds: float = 15.0,
        on_rebuild: OnRebuild | None = None,
    ) -> None:
        self.rebuilds: Counter[tuple[str, str]] = Counter()
        self._on_rebuild = on_rebuild
        self._arguments = {
            "bootstrap_servers": bootstrap,
            "client_id": client_id,
            **(security or Security()).arguments(),
        }
        self._request_timeout_seconds = request_timeout_seconds
        self._append_timeout_seconds = append_timeout_seconds
        self._questions = Administration(self._arguments, request_timeout_seconds, self._rebuilt)

    def _rebuilt(self, client: str, reason: str) -> None:
        self.rebuilds[client, reason] += 1
        if self._on_rebuild is not None:
            self._on_rebuild(client, reason)

    # --- topics and partitions

    def partition_of_key(self, topic: str, key: bytes) -> int:
        return partition_of(key, self._questions.known_count(topic))

    async def partition_count(self, topic: str, *, fresh: bool = False) -> int:
        return await self._questions.partition_count(topic, fresh=fresh)

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        return await self._questions.describe(topics)

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        return await self._questions.create(specs)

    async def grow(self, counts: Mapping[str, int]) -> list[str]:
        return await self._questions.grow(counts)

    # --- appending and reading

    async def appender(self, *, linger_ms: int = 0) -> KafkaAppender:
        return await KafkaAppender.open(
            self._arguments,
            self._questions.partition_count,
            linger_ms=linger_ms,
            request_timeout_seconds=self._request_timeout_seconds,
            append_timeout_seconds=self._append_timeout_seconds,
            on_rebuild=self._rebuilt,
        )

    async def tail(self, positions: Mapping[Partition, int]) -> KafkaTail:
        topics = {partition.topic for partition in positions}
        for topic in topics:
            await self.partition_count(topic)
        client = await self._tail_client(topics)
        return KafkaTail(client, self._tail_client, self.end_offsets, positions, self._rebuilt)

    async def _tail_client(self, topics: Iterable[str]) -> TailClient:
        seconds = self._request_timeout_seconds
        client = TailClient(
            topics,
            **self._arguments,
            request_timeout_ms=int(seconds * 1000) + FETCH_WAIT_MS,
            metadata_max_age_ms=TAIL_METADATA_MS,
        )
        await started(client, "connecting a reader", seconds)
        return client

    async def join(
        self,
        group: str,
        topic: str,
        *,
        on_revoked: RevokedHook,
        on_assigned: AssignedHook,
        instance_id: str | None = None,
        session_timeout_seconds: float = 10.0,
    ) -> KafkaMember:
        await self.partition_count(topic)
        rebalance_seconds = min(session_timeout_seconds, REBALANCE_SECONDS_MAX)
        opener = self._opener(
            f"joining {group}",
            # the answer to a join comes only when the rebalance is over
            wait_seconds=session_timeout_seconds + rebalance_seconds,
            group_id=group,
            group_instance_id=instance_id,
            session_timeout_ms=int(session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(min(0.5, session_timeout_seconds / 5) * 1000),
            rebalance_timeout_ms=int(rebalance_seconds * 1000),
            max_poll_interval_ms=int(MAX_POLL_SECONDS * 1000),
            metadata_max_age_ms=int(MEMBER_METADATA_SECONDS * 1000),
            max_partition_fetch_bytes=GROUP_FETCH_BYTES,
            fetch_max_wait_ms=MEMBER_FETCH_WAIT_MS,
        )

        async def leave(member_id: str) -> None:
            await self.remove_member(group, member_id)

        member = KafkaMember(
            topic,
            (on_revoked, on_assigned),
            opener,
            self.end_offsets,
            self._rebuilt,
            commit_timeout_seconds=min(5.0, session_timeout_seconds / 2),
            join_timeout_seconds=max(30.0, 3 * session_timeout_seconds),
            # aiokafka never leaves for a member with an instance id
            leave=leave if instance_id is not None else None,
        )
        await member.open()
        return member

    def _opener(self, what: str, *, wait_seconds: float, **more: Any) -> OpenConsumer:
        seconds = self._request_timeout_seconds

        async def open_consumer() -> AIOKafkaConsumer:
            consumer = AIOKafkaConsumer(
                **self._arguments,
                **more,
                request_timeout_ms=int((seconds + wait_seconds) * 1000),
                enable_auto_commit=False,
                auto_offset_reset="none",
            )
            await started(consumer, what, seconds)
            return consumer

        return open_consumer

    # --- questions

    async def start_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        wanted = _tps(partitions)
        return await self._questions.offsets(partitions, lambda it: it.beginning_offsets(wanted))

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        wanted = _tps(partitions)
        return await self._questions.offsets(partitions, lambda it: it.end_offsets(wanted))

    async def offsets_at(self, times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        # Ends first: what is appended between the two questions must not be jumped over.
        ends = await self.end_offsets(list(times_ms))
        wanted = {TopicPartition(*p): max(0, time_ms) for p, time_ms in times_ms.items()}
        found = await self._questions.offsets(times_ms, lambda it: it.offsets_for_times(wanted))
        return {p: at.offset if (at := found[p]) is not None else ends[p] for p in times_ms}

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        return await self._questions.committed(group, partitions)

    async def members(self, group: str) -> list[GroupMember]:
        return await self._questions.members(group)

    async def remove_member(self, group: str, member_id: str) -> None:
        await self._questions.remove_member(group, member_id)

    async def close(self) -> None:
        """Ends the clients kept for questions; appenders, tails and members end by themselves."""
        await self._questions.close()
        await settled()


def _tps(partitions: Sequence[Partition]) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]
