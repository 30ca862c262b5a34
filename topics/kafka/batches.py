"""aiokafka's producer buffer, changed in two places.

A record is put in without suspending, and acknowledgements go straight to our futures: a coroutine
and a callback per record would cost more than all the rest. A batch that the broker certainly
refused gives its sequence numbers back, else the next one would be out of order.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from aiokafka.errors import (
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.structs import TopicPartition

from topics.kafka.clients import describe
from topics.ports import Appended, AppendFailed, Headers, RecordTooLarge

Ack = asyncio.Future[Appended]
OnDoubt = Callable[[str], None]

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_REFUSED = (InvalidTopicError, TopicAuthorizationFailedError)


class Batch(MessageBatch):  # type: ignore[misc]  # aiokafka has no types
    """A batch on its way to one partition; `on_doubt` ends the whole appender."""

    on_doubt: OnDoubt
    sequences: Any  # aiokafka's TransactionManager, which counts sequence numbers
    weight_bytes = 0

    def done(self, base_offset: int, timestamp: int | None = None, *_: Any) -> None:
        """The broker has it. A base offset of -1: it had it already, and does not know where."""
        if not self.future.done():
            self.future.set_result(None)
        partition = self.tp.partition
        time_ms = timestamp if timestamp is not None and timestamp >= 0 else None
        for ack, metadata in self._msg_futures:
            if not ack.done():
                offset = base_offset + metadata.offset if base_offset >= 0 else -1
                ack.set_result(Appended(partition, offset, time_ms))

    def failure(self, exception: BaseException) -> None:
        """Certainly refused at the first attempt, or in doubt."""
        if self.retry_count <= 1 and isinstance(exception, _TOO_LARGE + _REFUSED):
            kind = RecordTooLarge if isinstance(exception, _TOO_LARGE) else AppendFailed
            # the broker did not count them, and nothing of this partition was sent since
            self.sequences.increment_sequence_number(self.tp, -self.record_count)
            for ack, _ in self._msg_futures:
                if not ack.done():
                    ack.set_exception(kind(f"{self.tp.topic}: {describe(exception)}"))
        else:
            self.on_doubt(f"{self.tp.topic}/{self.tp.partition}: {describe(exception)}")
        if not self.future.done():
            self.future.set_exception(exception)
        self.future.exception()  # nobody else looks
        if not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Tells whoever waits; the batch itself stays where aiokafka's sender expects it."""
        for ack, _ in self._msg_futures:
            if not ack.done():
                ack.set_exception(error)

    @property
    def created_s(self) -> float:
        """When its first record came, on `time.monotonic`."""
        return float(self._ctime)


class Buffer(MessageAccumulator):  # type: ignore[misc]  # as above
    """Records that wait for the sender, per partition in call order."""

    on_doubt: OnDoubt
    waiting_bytes = 0

    def put(
        self,
        partition: tuple[str, int],
        value: bytes | None,
        key: bytes | None,
        headers: Headers,
        ack: Ack,
    ) -> None:
        """Puts a record behind all others of its partition, in a new batch if the last is full."""
        batches = self._batches.get(partition)
        batch = batches[-1] if batches else self._append_batch(self.create_builder(), partition)

        listed = list(headers)

        def given() -> Ack:
            return ack

        if batch.append(key, value, None, given, listed) is None:
            batch = self._append_batch(self.create_builder(), partition)
            if batch.append(key, value, None, given, listed) is None:
                raise RecordTooLarge("the record does not fit an empty batch")
        weight = len(value or b"") + len(key or b"")
        batch.weight_bytes += weight
        self.waiting_bytes += weight

    def _append_batch(self, builder: Any, tp: tuple[str, int]) -> Batch:
        batch = Batch(TopicPartition(*tp), builder, self._batch_ttl, self._linger_time)
        batch.on_doubt = self.on_doubt
        batch.sequences = self._txn_manager
        batch.future.add_done_callback(lambda _: self._let_go(batch))
        self._batches[batch.tp].append(batch)
        if not self._waiter_future.done():
            self._waiter_future.set_result(None)
        return batch

    def _let_go(self, batch: Batch) -> None:
        self.waiting_bytes -= batch.weight_bytes

    def open_batches(self) -> Iterator[Batch]:
        """All that is not acknowledged."""
        yield from list(self._pending_batches)
        for batches in list(self._batches.values()):
            yield from batches
