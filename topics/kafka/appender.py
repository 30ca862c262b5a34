"""Appending: an idempotent producer behind a plain call that keeps order and never suspends."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer

from topics.kafka.batches import Ack, Buffer, fail
from topics.kafka.clients import (
    RECORD_BYTES_MAX,
    OnRebuild,
    cancelled,
    dismantled,
    in_background,
    started,
)
from topics.ports import AppendFailed, AppendUnknown, Headers, LogError, RecordTooLarge

BUFFER_BYTES_MAX = 64 * 1024 * 1024
# below any topic's max.message.bytes: a batch of small records must not be refused for its size
BATCH_BYTES = 128 * 1024
UNKNOWN_TOPIC_SECONDS = 2.0
_SWEEP_SECONDS = 0.5

CountPartitions = Callable[[str], Awaitable[int]]


class _Waiting(NamedTuple):
    """A record whose topic is not known yet."""

    partition: int
    value: bytes | None
    key: bytes | None
    headers: Headers
    ack: Ack


class KafkaAppender:
    """See `topics.ports.Appender`."""

    def __init__(
        self,
        producer: AIOKafkaProducer,
        count_partitions: CountPartitions,
        timeout_seconds: float,
        on_rebuild: OnRebuild,
    ) -> None:
        self._on_rebuild = on_rebuild
        self._producer = producer
        self._buffer: Buffer = producer._message_accumulator  # noqa: SLF001
        self._buffer.on_doubt = self._break
        self._count_partitions = count_partitions
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, int] = {}
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._resolving: set[asyncio.Task[None]] = set()
        self._refusing: str | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._sender_task.add_done_callback(self._sender_ended)

    @classmethod
    async def open(
        cls,
        arguments: dict[str, Any],
        count_partitions: CountPartitions,
        *,
        linger_ms: int,
        request_timeout_seconds: float,
        append_timeout_seconds: float,
        on_rebuild: OnRebuild,
    ) -> "KafkaAppender":
        """Connects a new producer. Raises LogError."""
        # A request to a leader that hangs must leave time for a second one.
        attempt_ms = int(min(request_timeout_seconds, append_timeout_seconds / 2) * 1000)
        producer = AIOKafkaProducer(
            **arguments,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=attempt_ms,
            max_request_size=RECORD_BYTES_MAX,
            metadata_max_age_ms=60_000,
        )
        buffer = Buffer(
            producer.client.cluster,
            BATCH_BYTES,
            0,
            append_timeout_seconds,
            txn_manager=producer._txn_manager,  # noqa: SLF001
            linger_ms=linger_ms,
        )
        producer._message_accumulator = buffer  # noqa: SLF001
        producer._sender._message_accumulator = buffer  # noqa: SLF001
        await started(producer, "connecting a producer", request_timeout_seconds)
        return cls(producer, count_partitions, append_timeout_seconds, on_rebuild)

    @property
    def _sender_task(self) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = self._producer._sender.sender_task  # noqa: SLF001
        return task

    # --- appending

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
        if self._refusing is not None:
            fail(ack, AppendFailed(self._refusing))
        elif (error := self._unfit(value, headers)) is not None:
            fail(ack, error)
        elif self._waiting and topic in self._waiting:
            self._waiting[topic].append(_Waiting(partition, value, key, headers, ack))
        elif partition >= self._known.get(topic, 0):
            self._waiting[topic] = deque([_Waiting(partition, value, key, headers, ack)])
            task = self._loop.create_task(self._resolve(topic))
            self._resolving.add(task)
            task.add_done_callback(self._resolved)
        else:
            self._put(topic, partition, value, key, headers, ack)
        return ack

    def _unfit(self, value: bytes | None, headers: Headers) -> AppendFailed | None:
        weight = len(value or b"")
        for name, it in headers:
            weight += len(name) + len(it)
        if weight > RECORD_BYTES_MAX - 1024:
            return RecordTooLarge(f"a record of {weight} bytes, {RECORD_BYTES_MAX - 1024} allowed")
        if self._buffer.waiting_bytes + weight > BUFFER_BYTES_MAX:
            return AppendFailed(f"{BUFFER_BYTES_MAX} bytes wait for the broker already")
        return None

    async def _resolve(self, topic: str) -> None:
        """Learns the topic's partitions, then hands over what waited for them, in order."""
        waiting = self._waiting[topic]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._learn(topic, max(it.partition for it in waiting))
        except TimeoutError:
            self._fail_waiting(topic, f"{topic}: the broker did not say who leads it")
            return
        except LogError as error:
            self._fail_waiting(topic, str(error))
            return
        del self._waiting[topic]
        for partition, value, key, headers, ack in waiting:
            if ack.done():
                continue
            if partition < self._known[topic]:
                self._put(topic, partition, value, key, headers, ack)
            else:
                fail(ack, AppendFailed(f"there is no partition {topic}/{partition}"))

    def _resolved(self, task: "asyncio.Task[None]") -> None:
        self._resolving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(f"records that waited could not be handed over: {error!r}")

    def _put(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        key: bytes | None,
        headers: Headers,
        ack: Ack,
    ) -> None:
        self._buffer.put((topic, partition), value, key, headers, ack)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def _learn(self, topic: str, partition: int) -> None:
        until_s = self._loop.time() + UNKNOWN_TOPIC_SECONDS
        while True:
            try:
                self._known[topic] = await self._count_partitions(topic)
                break
            except LogError:
                # a topic that was just made may not be known everywhere
                if self._loop.time() > until_s:
                    raise
                await asyncio.sleep(0.1)
        net = self._producer.client
        net.add_topic(topic)
        while len(net.cluster.partitions_for_topic(topic) or ()) < min(
            partition + 1, self._known[topic]
        ):
            await net.force_metadata_update()
            await asyncio.sleep(0.01)

    def _fail_waiting(self, topic: str, reason: str) -> None:
        for it in self._waiting.pop(topic, ()):
            fail(it.ack, AppendFailed(reason))

    # --- trouble

    def _sweep(self) -> None:
        """Bounds the wait for an ack: aiokafka retries an idempotent batch for ever."""
        self._sweeping = None
        oldest_s = min((batch.created_s for batch in self._buffer.open_batches()), default=None)
        if oldest_s is None:
            return
        if time.monotonic() - oldest_s > self._timeout_seconds:
            self._break(f"no acknowledgement within {self._timeout_seconds:.0f} s")
        else:
            self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _sender_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._break(f"the producer stopped: {task.exception()}")

    def _break(self, reason: str) -> None:
        """Order and deduplication are no longer certain: all that is open is in doubt, too."""
        if self._ending is not None:
            return
        self._refusing = f"the appender is broken: {reason}"
        self._on_rebuild("appender", "in_doubt")
        self._ending = in_background(self._end(reason))
        self._fail_open(reason)

    def _fail_open(self, reason: str) -> None:
        for topic in list(self._waiting):
            self._fail_waiting(topic, reason)
        for batch in self._buffer.open_batches():
            batch.fail(AppendUnknown(reason))

    # --- the end

    async def close(self, timeout_seconds: float = 5.0) -> None:
        if self._refusing is None:
            self._refusing = "the appender is closed"
        if self._ending is None:
            await self._flush(timeout_seconds)
        if self._ending is None:  # it may have broken meanwhile
            self._ending = in_background(self._end("closed before the acknowledgement came"))
        await asyncio.shield(self._ending)

    async def _flush(self, timeout_seconds: float) -> None:
        until_s = self._loop.time() + timeout_seconds
        if self._resolving and timeout_seconds > 0:
            await asyncio.wait(set(self._resolving), timeout=timeout_seconds)
        flights = {batch.future for batch in self._buffer.open_batches()}
        left_s = until_s - self._loop.time()
        if flights and left_s > 0:
            await asyncio.wait(flights, timeout=left_s)

    async def _end(self, reason: str) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        await cancelled(self._resolving)
        self._fail_open(reason)
        # by force: its own `stop` waits for the sender, which waits for the broker, without limit
        await dismantled(self._producer)
