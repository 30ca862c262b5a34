"""A member of a consumer group whose every step is ours: no reset, no fetch, no commit of its own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from topics.kafka.clients import OnRebuild, cancelled, describe, ended, in_background
from topics.kafka.commits import commit_once, tell_outcome
from topics.kafka.reading import (
    _NOT_ALLOWED,
    RETRY_SECONDS,
    AskEnds,
    ClientBroken,
    OpenConsumer,
    Progress,
    end_opening,
    poll,
    refused_position,
)
from topics.ports import (
    AssignedHook,
    CommitRefused,
    Committed,
    LogError,
    OffsetOutOfRange,
    Partition,
    Record,
    RevokedHook,
)

RemoveMember = Callable[[str], Awaitable[None]]

_log = logging.getLogger(__name__)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's listener of one consumer; silent once the member has another one."""

    def __init__(self, member: "KafkaMember", consumer: AIOKafkaConsumer) -> None:
        self._member = member
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002  eager: all of them
        if self._member.consumer is self._consumer:
            await self._member.revoke()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        # At once, before anything else runs: a partition without a position makes the fetcher look
        # for a committed offset, paused or not, and a new group has none. Any position will do.
        for tp in assigned:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
        if self._member.consumer is self._consumer:
            await self._member.assign(frozenset(Partition(*tp) for tp in assigned))


class KafkaMember:
    """See `topics.ports.Member`. `rebuilds` counts clients that were given up."""

    def __init__(
        self,
        topic: str,
        hooks: tuple[RevokedHook, AssignedHook],
        open_consumer: OpenConsumer,
        ask_ends: AskEnds,
        on_rebuild: OnRebuild,
        *,
        commit_timeout_seconds: float,
        join_timeout_seconds: float,
        leave: RemoveMember | None,
    ) -> None:
        self.rebuilds = 0
        self.consumer: AIOKafkaConsumer | None = None
        self._topic = topic
        self._revoked_hook, self._assigned_hook = hooks
        self._open_consumer = open_consumer
        self._opening: asyncio.Task[AIOKafkaConsumer] | None = None
        self._progress = Progress(ask_ends)
        self._on_rebuild = on_rebuild
        self._commit_timeout_seconds = commit_timeout_seconds
        self._join_timeout_seconds = join_timeout_seconds
        self._leave = leave
        self._held: frozenset[Partition] = frozenset()
        self._unplaced: set[Partition] = set()
        self._identity = (-1, "")
        self._told_assigned = False
        self._joining_since_s: float | None = None
        self._commit: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connects and asks to join; the hooks tell when the group has answered."""
        self._begin(await self._open_consumer())

    def _begin(self, consumer: AIOKafkaConsumer) -> None:
        self.consumer = consumer
        consumer.subscribe([self._topic], listener=_Listener(self, consumer))

    @property
    def member_id(self) -> str:
        """The id the group knows this member by; '' before the first join."""
        return self._group_identity()[1]

    def _group_identity(self) -> tuple[int, str]:
        if self.consumer is None:
            return -1, ""
        coordinator = self.consumer._coordinator  # noqa: SLF001  there is no public way
        return int(coordinator.generation), str(coordinator.member_id)

    # --- the group's word

    async def revoke(self) -> None:
        """Everything held is gone; no commit is under way any more when this returns."""
        held, self._held = self._held, frozenset()
        self._identity = (-1, "")
        if self._commit is not None and not self._commit.done():
            # else it could reach the broker under the next generation, behind another owner's
            await cancelled({self._commit})
        if self._told_assigned:
            self._told_assigned = False
            await self._revoked_hook(held)

    async def assign(self, partitions: frozenset[Partition]) -> None:
        """A new generation's share, all of it paused."""
        self._identity = self._group_identity()
        self._held = partitions
        self._unplaced = set(partitions)
        self._told_assigned = True
        await self._assigned_hook(partitions)

    # --- topics.ports.Member

    def assignment(self) -> frozenset[Partition]:
        return self._held

    def seek(self, partition: Partition, offset: int) -> None:
        if partition in self._held and self.consumer is not None:
            self.consumer.seek(TopicPartition(*partition), offset)
            self._unplaced.discard(partition)

    def pause(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            if partition in self._held and self.consumer is not None:
                self.consumer.pause(TopicPartition(*partition))

    def resume(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            if partition in self._held and self.consumer is not None:
                if partition in self._unplaced:
                    raise ValueError(f"{partition}: seek comes before resume")
                self.consumer.resume(TopicPartition(*partition))

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 500) -> list[Record]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + max_wait_seconds
        consumer = await self._client(max_wait_seconds)
        if consumer is None:
            return []
        try:
            records = await poll(consumer, max(0.0, until_s - loop.time()), max_records)
        except OffsetOutOfRangeError as error:
            partition, position = refused_position(error)
            if self._positions(consumer).get(partition) == position:
                raise OffsetOutOfRange(f"{partition}: {position} is not on the log") from error
            return []
        except _NOT_ALLOWED as error:
            raise LogError(f"{self._topic}: {describe(error)}") from error
        except (KafkaError, ClientBroken) as error:
            await self._trouble(consumer, error, max_wait_seconds)
            return []
        if self._stuck(consumer, loop.time(), idle=not records):
            await self._rebuild(
                consumer, "stuck", "it waits for records or for the group, and none come"
            )
        return records

    def _positions(self, consumer: AIOKafkaConsumer) -> dict[Partition, int]:
        """The positions of all unpaused partitions."""
        subscription = consumer._subscription  # noqa: SLF001
        states = ((p, subscription._assigned_state(TopicPartition(*p))) for p in self._held)  # noqa: SLF001
        return {p: state.position for p, state in states if not state.paused}

    def _stuck(self, consumer: AIOKafkaConsumer, now_s: float, *, idle: bool) -> bool:
        if consumer._subscription.reassignment_in_progress:  # noqa: SLF001
            if self._joining_since_s is None:
                self._joining_since_s = now_s
            return now_s - self._joining_since_s > self._join_timeout_seconds
        self._joining_since_s = None
        return idle and self._progress.check(self._positions(consumer), now_s)

    async def _trouble(self, consumer: AIOKafkaConsumer, error: Exception, wait: float) -> None:
        ended_task = consumer._coordinator._coordination_task.done()  # noqa: SLF001
        if isinstance(error, ClientBroken) or ended_task:
            await self._rebuild(consumer, "died", describe(error))
        else:
            _log.warning("%s: reading failed, trying again: %s", self._topic, describe(error))
            await asyncio.sleep(min(RETRY_SECONDS, wait))

    async def _rebuild(self, consumer: AIOKafkaConsumer, reason: str, detail: str) -> None:
        _log.warning("%s: the member is given up and joins anew: %s", self._topic, detail)
        self.rebuilds += 1
        self._on_rebuild("member", reason)
        self.consumer = None
        self._joining_since_s = None
        in_background(ended(consumer))
        await self.revoke()

    async def _client(self, max_wait_seconds: float) -> AIOKafkaConsumer | None:
        """The client, None if a new one could not be had within the wait."""
        if self.consumer is not None:
            return self.consumer
        if self._opening is None:
            self._opening = in_background(self._open_consumer())
        await asyncio.wait({self._opening}, timeout=max_wait_seconds)
        if not self._opening.done():
            return None
        opening, self._opening = self._opening, None
        if isinstance(opening.exception(), LogError):
            await asyncio.sleep(min(RETRY_SECONDS, max_wait_seconds))
            return None
        self._begin(opening.result())
        return self.consumer

    async def commit(self, offsets: Mapping[Partition, Committed]) -> None:
        if self._commit is not None and not self._commit.done():
            if not self._commit.cancelling():
                raise LogError("another commit is under way")
            await cancelled({self._commit})
        if not set(offsets) <= self._held:
            raise CommitRefused("a partition is not assigned any more")
        commit = self._commit = asyncio.create_task(
            commit_once(dict(offsets), self._coordinator_of_ours)
        )
        try:
            done, _ = await asyncio.wait({commit}, timeout=self._commit_timeout_seconds)
        except asyncio.CancelledError:
            commit.cancel()
            raise
        if not done:
            await cancelled({commit})
            raise LogError(f"no answer to a commit in {self._commit_timeout_seconds:.0f} s")
        tell_outcome(commit)

    def _coordinator_of_ours(self) -> Any:
        """Raises CommitRefused if the group may have forgotten the generation that we hold."""
        if self.consumer is None or self._identity != self._group_identity():
            raise CommitRefused("the group has another generation")
        return self.consumer._coordinator  # noqa: SLF001

    async def close(self) -> None:
        self._held = frozenset()
        member_id = self.member_id
        if self._commit is not None:
            await cancelled({self._commit})
        await self._progress.close()
        if self._opening is not None:
            await end_opening(self._opening)
            self._opening = None
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await ended(consumer)
        if self._leave is not None and member_id:
            try:
                await self._leave(member_id)
            except LogError as error:
                _log.warning("%s: the group was not told that we leave: %s", self._topic, error)
