"""What is asked of a cluster: offsets, commits, topics. Two long-lived clients, made anew if broken."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest

from topics.kafka.clients import OnRebuild, describe, ended, in_background, started
from topics.kafka.metadata import TopicMetadataRequest, topics_of
from topics.ports import Committed, LogError, Partition, TopicSpec, TopicState

COUNT_CACHE_SECONDS = 30.0
RETRY_SECONDS = 0.1

T = TypeVar("T")


def check(code: int, what: str) -> None:
    """Raises the KafkaError that an error code stands for."""
    error = for_code(code)
    if error is not NoError:
        raise error(what)


class Questions:
    """Every question is tried again while the limit lasts, then raises LogError."""

    def __init__(
        self, arguments: dict[str, Any], timeout_seconds: float, on_rebuild: OnRebuild
    ) -> None:
        self._arguments = arguments
        self._timeout_seconds = timeout_seconds
        self._on_rebuild = on_rebuild
        self._counts: dict[str, tuple[float, int]] = {}
        self._clients: dict[type, Any] = {}
        self._opening = asyncio.Lock()

    # --- topics

    def known_count(self, topic: str) -> int:
        """The number of partitions as last asked. Raises LogError if nobody asked."""
        if topic not in self._counts:
            raise LogError(f"partition_count of {topic} was not awaited yet")
        return self._counts[topic][1]

    async def partition_count(self, topic: str, *, fresh: bool = False) -> int:
        """Raises LogError if there is no such topic."""
        known = None if fresh else self._counts.get(topic)
        if known is None or time.monotonic() - known[0] > COUNT_CACHE_SECONDS:
            (count,) = (await self._existing([topic])).values()
            known = self._counts[topic] = (time.monotonic(), count)
        return known[1]

    async def _existing(self, topics: Iterable[str]) -> dict[str, int]:
        """Partition counts of topics, all of which must exist."""
        names = sorted(set(topics))
        found = await self._topics(names)
        for name in names:
            if name not in found:
                self._counts.pop(name, None)
                raise LogError(f"there is no topic {name}")
        return {name: found[name][0] for name in names}

    async def _topics(self, names: list[str]) -> dict[str, tuple[int, int, str]]:
        """Name -> (partitions, replication, topic id) of those that exist."""
        return await self._admin("asking for topics", lambda admin: _found(admin, names))

    async def describe(self, names: Sequence[str]) -> dict[str, TopicState]:
        """Topics that do not exist are left out."""

        async def ask(admin: AIOKafkaAdminClient) -> dict[str, TopicState]:
            # one question in two steps: a topic may be deleted between them, then both are asked again
            found = await _found(admin, sorted(set(names)))
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
            configs: dict[str, dict[str, str]] = {}
            for answer in await admin.describe_configs(resources) if resources else ():
                for code, _, _, name, entries in answer.resources:
                    check(code, name)
                    configs[name] = {it[0]: it[1] for it in entries if it[1] is not None}
            return {
                name: TopicState(name, partitions, replication, configs[name], topic_id)
                for name, (partitions, replication, topic_id) in found.items()
            }

        return await self._admin("describing topics", ask)

    async def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Creates the missing ones and returns once they are known."""
        existing = await self._topics([spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in existing]
        topics = [
            NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.configs))
            for spec in missing
        ]
        timeout_ms = int(self._timeout_seconds * 1000)

        async def ask(admin: AIOKafkaAdminClient) -> list[str]:
            answer = await admin.create_topics(topics, timeout_ms)
            made = []
            for name, code, *message in answer.topic_errors:
                if for_code(code) is not TopicAlreadyExistsError:  # another replica was quicker
                    check(code, f"{name}: {message[0] if message else ''}")
                    made.append(name)
            return made

        async def known(_: AIOKafkaAdminClient) -> None:
            found = await self._topics([spec.name for spec in missing])
            if len(found) < len(missing):
                raise UnknownTopicOrPartitionError("just made, not known yet")

        if not missing:
            return []
        made = await self._admin("making topics", ask)
        await self._admin("making topics", known)
        return made

    # --- offsets

    async def offsets(
        self,
        partitions: Iterable[Partition],
        call: Callable[[AIOKafkaConsumer], Awaitable[Mapping[TopicPartition, T]]],
    ) -> dict[Partition, T]:
        """What a consumer without a group answers about partitions that must exist."""
        topics = {partition.topic for partition in partitions}
        for topic in topics:
            await self.partition_count(topic)

        async def ask(consumer: AIOKafkaConsumer) -> dict[Partition, T]:
            for topic in topics:
                await consumer._client._wait_on_metadata(topic)  # noqa: SLF001
            return {Partition(*tp): value for tp, value in (await call(consumer)).items()}

        return await self._ask(AIOKafkaConsumer, "asking for offsets", ask)

    # --- groups

    async def committed(
        self, group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, Committed]:
        """Offset and metadata from one answer. An error is never taken for 'no commit'."""
        by_topic: dict[str, list[int]] = {}
        for partition in partitions:
            by_topic.setdefault(partition.topic, []).append(partition.index)
        request = OffsetFetchRequest(group, list(by_topic.items()))

        async def ask(admin: AIOKafkaAdminClient) -> dict[Partition, Committed]:
            node = await admin.find_coordinator(group)
            return committed_of(await admin._send_request(request, node), partitions)  # noqa: SLF001

        return await self._admin(f"asking for commits of {group}", ask)

    async def remove_member(self, group: str, member_id: str) -> None:
        """Leaves the group on a member's behalf; a member long gone is no error."""

        async def leave(admin: AIOKafkaAdminClient) -> None:
            node = await admin.find_coordinator(group)
            answer = await admin._send_request(LeaveGroupRequest(group, member_id), node)  # noqa: SLF001
            if for_code(answer.error_code) is not UnknownMemberIdError:
                check(answer.error_code, member_id)

        await self._admin(f"leaving {group}", leave)

    # --- clients

    async def _admin(self, what: str, call: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        return await self._ask(AIOKafkaAdminClient, what, call)

    async def _ask(self, kind: type, what: str, call: Callable[[Any], Awaitable[T]]) -> T:
        reason = "no answer from the broker"
        client = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while True:
                    try:
                        client = await self._client(kind)
                        return await call(client)
                    except (KafkaError, OSError, AttributeError) as error:
                        # AttributeError: aiokafka's admin client while no controller is known
                        if isinstance(error, KafkaError) and not error.retriable:
                            raise LogError(f"{what}: {describe(error)}") from error
                        reason = describe(error)
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            self._forget(kind, client)
            raise LogError(f"{what}: {reason} (tried for {self._timeout_seconds:.0f} s)") from None

    async def _client(self, kind: type) -> Any:
        async with self._opening:
            if kind not in self._clients:
                timeout_ms = int(self._timeout_seconds * 1000)
                more = {"auto_offset_reset": "none"} if kind is AIOKafkaConsumer else {}
                client = kind(**self._arguments, request_timeout_ms=timeout_ms, **more)
                try:
                    await started(client, "connecting", self._timeout_seconds)
                except LogError as error:
                    raise ConnectionError(str(error)) from error  # is tried again
                self._clients[kind] = client
            return self._clients[kind]

    def _forget(self, kind: type, client: Any) -> None:
        """A client that gave no answer is not trusted again: the next question makes a new one."""
        if client is not None and self._clients.get(kind) is client:
            del self._clients[kind]
            self._on_rebuild("questions", "no_answer")
            in_background(ended(client))

    async def close(self) -> None:
        """Ends both clients."""
        clients = list(self._clients.values())
        self._clients.clear()
        await asyncio.gather(*(ended(client) for client in clients))


def committed_of(answer: Any, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
    """Reads an OffsetFetch answer. Raises KafkaError for any error in it.

    aiokafka's admin client passes over an error of the whole answer: a coordinator that is still
    loading would look like a group without commits, and everything would run again.
    """
    check(getattr(answer, "error_code", 0), "the group's coordinator")
    found: dict[Partition, Committed] = {}
    told = set()
    for topic, entries in answer.topics:
        for index, offset, metadata, code in entries:
            partition = Partition(topic, index)
            check(code, str(partition))
            told.add(partition)
            if offset >= 0:
                found[partition] = Committed(offset, metadata or "")
    if missing := set(partitions) - told:
        raise UnknownTopicOrPartitionError(f"no word on {sorted(missing)}")
    return found


async def _found(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, tuple[int, int, str]]:
    answer = await admin._send_request(TopicMetadataRequest(names))  # noqa: SLF001
    found = {}
    for name, (code, partitions, replication, topic_id) in topics_of(answer).items():
        if for_code(code) is not UnknownTopicOrPartitionError:
            check(code, name)
            found[name] = (partitions, replication, topic_id)
    return found
