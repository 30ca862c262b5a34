"""A Kafka cluster as a `topics.ports.Log`."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2
from aiokafka.protocol.group import LeaveGroupRequest

from topics.kafka.appender import APPEND_SECONDS_MAX, KafkaAppender
from topics.kafka.member import KafkaMember
from topics.kafka.reading import KafkaTail
from topics.kafka.security import Security, bounded
from topics.ports import (
    AssignedHook,
    Committed,
    LogError,
    Partition,
    RevokedHook,
    TopicSpec,
    TopicState,
)

RECORD_BYTES_MAX = 3 * 1024 * 1024
COUNT_CACHE_SECONDS = 30.0

T = TypeVar("T")


class KafkaLog:
    """See `topics.ports.Log`. Clients for asking are made on first use and kept."""

    def __init__(
        self, bootstrap: str, *, client_id: str = "inferlog", security: Security | None = None
    ) -> None:
        arguments = (security or Security()).arguments()
        self._common = {"bootstrap_servers": bootstrap, "client_id": client_id, **arguments}
        self._counts: dict[str, tuple[float, int]] = {}
        self._asker: AIOKafkaConsumer | None = None
        self._admin_client: AIOKafkaAdminClient | None = None
        self._opening = asyncio.Lock()

    # --- topics and partitions

    def partition_of_key(self, topic: str, key: bytes) -> int:
        """Kafka's default partitioner, as Java's clients have it."""
        return int(murmur2(key) & 0x7FFFFFFF) % self._counts[topic][1]

    async def partition_count(self, topic: str) -> int:
        """Raises LogError if there is no such topic."""
        known = self._counts.get(topic)
        if known is None or time.monotonic() - known[0] > COUNT_CACHE_SECONDS:
            states = await self.describe([topic])
            if topic not in states:
                raise LogError(f"there is no topic {topic}: `inferlog topics create` makes it")
            known = self._counts[topic] = (time.monotonic(), states[topic].partitions)
        return known[1]

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        """Topics that do not exist are left out."""
        described = await self._ask_admin(lambda admin: admin.describe_topics(list(topics)))
        found = {it["topic"]: it for it in described if it["error_code"] == 0}
        if not found:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
        answers = await self._ask_admin(lambda admin: admin.describe_configs(resources))
        configs: dict[str, dict[str, str]] = {}
        for answer in answers:
            for _, _, _, name, entries in answer.resources:
                configs[name] = {entry[0]: entry[1] for entry in entries}
        return {
            name: TopicState(
                name,
                len(it["partitions"]),
                len(it["partitions"][0]["replicas"]),
                configs.get(name, {}),
            )
            for name, it in found.items()
        }

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Creates the missing ones; an existing topic is left alone."""
        existing = await self.describe([spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in existing]
        if not missing:
            return []
        topics = [
            NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.configs))
            for spec in missing
        ]
        answer = await self._ask_admin(lambda admin: admin.create_topics(topics), 30.0)
        for name, code, *message in answer.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise LogError(f"topic {name} could not be made: {message or for_code(code)}")
        return [spec.name for spec in missing]

    # --- clients

    async def appender(self, *, linger_ms: int = 0) -> KafkaAppender:
        """A new idempotent producer with `acks=all`."""
        producer = AIOKafkaProducer(
            **self._common,
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            max_request_size=RECORD_BYTES_MAX,
            request_timeout_ms=int(APPEND_SECONDS_MAX * 1000),
            metadata_max_age_ms=60_000,
        )
        await self._start(producer, "connecting a producer")
        return KafkaAppender(producer)

    async def tail(self, positions: Mapping[Partition, int]) -> KafkaTail:
        """A new consumer without a group."""
        consumer = self._consumer()
        await self._start(consumer, "connecting a reader")
        return KafkaTail(consumer, positions)

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
        """A new member of the group, by the classic eager protocol."""
        session_ms = int(session_timeout_seconds * 1000)
        consumer = self._consumer(
            group_id=group,
            group_instance_id=instance_id,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(100, min(500, session_ms // 5)),
            rebalance_timeout_ms=max(session_ms, 2000),
            max_poll_interval_ms=max(60_000, 3 * session_ms),
            retry_backoff_ms=50,
        )
        member = KafkaMember(consumer, on_revoked, on_assigned)
        consumer.subscribe([topic], listener=member)
        await self._start(consumer, f"joining {group}")
        return member

    def _consumer(self, **more: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._common,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=RECORD_BYTES_MAX,
            **more,
        )

    @staticmethod
    async def _start(client: Any, what: str) -> None:
        try:
            await bounded(client.start(), what, 15.0)
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.stop(), 2.0)
            raise

    # --- questions

    async def start_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The first offset that is still on the log."""
        return await self._ask(lambda it: it.beginning_offsets(_tps(partitions)))

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset that the next record will get."""
        return await self._ask(lambda it: it.end_offsets(_tps(partitions)))

    async def offsets_at(self, times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        """The first offset appended at or after each time; the end offset if there is none."""
        times = {TopicPartition(*partition): time_ms for partition, time_ms in times_ms.items()}
        ends = await self.end_offsets(list(times_ms))
        found = await self._ask(lambda it: it.offsets_for_times(times))
        return {p: found[p].offset if found.get(p) else ends[p] for p in times_ms}

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        """Offset and metadata from one answer."""
        answer = await self._ask_admin(
            lambda admin: admin.list_consumer_group_offsets(group, partitions=_tps(partitions))
        )
        return {
            Partition(tp.topic, tp.partition): Committed(at.offset, at.metadata or "")
            for tp, at in answer.items()
            if at.offset >= 0
        }

    async def remove_member(self, group: str, member_id: str) -> None:
        """Leaves the group for a member that died."""

        async def leave(admin: AIOKafkaAdminClient) -> None:
            node = await admin.find_coordinator(group)
            await admin._send_request_to_node(node, LeaveGroupRequest(group, member_id))  # noqa: SLF001

        await self._ask_admin(leave)

    async def _ask(self, call: Any) -> dict[Partition, Any]:
        async with self._opening:
            if self._asker is None:
                asker = self._consumer()
                await self._start(asker, "connecting")
                self._asker = asker
        try:
            answer = await bounded(call(self._asker), "asking for offsets")
        except LogError:
            await self._forget_clients()
            raise
        return {Partition(tp.topic, tp.partition): value for tp, value in answer.items()}

    async def _ask_admin(self, call: Any, seconds: float = 10.0) -> Any:
        async with self._opening:
            if self._admin_client is None:
                admin = AIOKafkaAdminClient(**self._common, request_timeout_ms=10_000)
                try:
                    await bounded(admin.start(), "connecting", 15.0)
                except BaseException:
                    with contextlib.suppress(Exception):
                        await admin.close()
                    raise
                self._admin_client = admin
        try:
            return await bounded(call(self._admin_client), "asking the cluster", seconds)
        except LogError:
            await self._forget_clients()
            raise

    async def _forget_clients(self) -> None:
        """A client that failed is not trusted again: the next question makes a new one."""
        asker, self._asker = self._asker, None
        admin, self._admin_client = self._admin_client, None
        closing: list[Awaitable[Any]] = []
        if asker is not None:
            closing.append(asyncio.wait_for(asker.stop(), 3.0))
        if admin is not None:
            closing.append(asyncio.wait_for(admin.close(), 3.0))
        await asyncio.gather(*closing, return_exceptions=True)

    async def close(self) -> None:
        """Ends the clients kept for asking."""
        await self._forget_clients()


def _tps(partitions: Sequence[Partition]) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]


