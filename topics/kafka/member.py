"""A member of a consumer group whose every step is ours: no reset, no fetch, no commit of its own."""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from topics.kafka.reading import fetch, stop_consumer
from topics.ports import (
    AssignedHook,
    CommitRefused,
    Committed,
    LogError,
    Partition,
    Record,
    RevokedHook,
)

COMMIT_SECONDS_MAX = 5.0


class KafkaMember(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """See `topics.ports.Member`."""

    def __init__(
        self, consumer: AIOKafkaConsumer, on_revoked: RevokedHook, on_assigned: AssignedHook
    ) -> None:
        self._consumer = consumer
        self._revoked_hook = on_revoked
        self._assigned_hook = on_assigned
        self._assigned: frozenset[Partition] = frozenset()
        self._commit: asyncio.Task[None] | None = None

    @property
    def member_id(self) -> str:
        """The id the group knows this member by; '' before the first join."""
        coordinator: Any = self._consumer._coordinator  # noqa: SLF001  there is no public way
        return str(getattr(coordinator, "member_id", "") or "")

    # --- aiokafka's listener

    async def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002  all are revoked
        """Ends an open commit first: aiokafka would retry it under the next generation."""
        held, self._assigned = self._assigned, frozenset()
        if self._commit is not None and not self._commit.done():
            self._commit.cancel()
            await asyncio.wait({self._commit}, timeout=COMMIT_SECONDS_MAX)
        await self._revoked_hook(held)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Pauses everything at once, at a position: without one aiokafka would look for it."""
        partitions = frozenset(Partition(tp.topic, tp.partition) for tp in assigned)
        for tp in assigned:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
        self._assigned = partitions
        await self._assigned_hook(partitions)

    # --- topics.ports.Member

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 500) -> list[Record]:
        """The next records of all assigned, unpaused partitions."""
        return await fetch(self._consumer, max_wait_seconds, max_records)

    def assignment(self) -> frozenset[Partition]:
        """What the group gave us."""
        return self._assigned

    def seek(self, partition: Partition, offset: int) -> None:
        """Sets the next offset to read; a partition that is gone is ignored."""
        with contextlib.suppress(IllegalStateError):
            self._consumer.seek(TopicPartition(*partition), offset)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Stops reading these; the member goes on polling."""
        for partition in partitions:
            with contextlib.suppress(IllegalStateError):
                self._consumer.pause(TopicPartition(*partition))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Goes on reading these."""
        for partition in partitions:
            with contextlib.suppress(IllegalStateError):
                self._consumer.resume(TopicPartition(*partition))

    async def commit(self, offsets: Mapping[Partition, Committed]) -> None:
        """One attempt under the current generation."""
        if self._commit is not None and not self._commit.done():
            raise LogError("another commit is under way")
        if not set(offsets) <= self._assigned:
            raise CommitRefused("a partition is not assigned any more")
        wanted = {
            TopicPartition(*partition): OffsetAndMetadata(at.offset, at.metadata)
            for partition, at in offsets.items()
        }
        self._commit = asyncio.ensure_future(self._consumer.commit(wanted))
        done, _ = await asyncio.wait({self._commit}, timeout=COMMIT_SECONDS_MAX)
        if not done:
            self._commit.cancel()
            await asyncio.wait({self._commit}, timeout=1.0)
            raise LogError(f"no answer to a commit in {COMMIT_SECONDS_MAX} s")
        if self._commit.cancelled():
            raise CommitRefused("the partitions were revoked meanwhile")
        error = self._commit.exception()
        if isinstance(error, CommitFailedError | IllegalStateError):
            raise CommitRefused(str(error)) from error
        if isinstance(error, KafkaError | OSError):
            raise LogError(f"commit: {type(error).__name__}: {error}") from error
        if error is not None:
            raise error

    async def close(self) -> None:
        """Leaves the group."""
        await stop_consumer(self._consumer)
