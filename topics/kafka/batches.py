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
    weight_bytes: int
    acks: list[Ack]  # the n-th record's, in place of aiokafka's own list of futures

    def add(self, value: bytes | None, key: bytes | None, headers: Any, ack: Ack) -> bool:
        """False if the batch is full or on its way."""
        builder = self._builder
        if builder._closed:  # noqa: SLF001  two calls less per record, a third of its whole cost
            return False
        if builder._builder.append(len(self.acks), None, key, value, headers) is None:  # noqa: SLF001
            builder.close()
            return False
        builder._relative_offset += 1  # noqa: SLF001
        self.acks.append(ack)
        return True

    def done(self, base_offset: int, timestamp: int | None = None, *_: Any) -> None:
        """The broker has it. A base offset of -1: it had it already, and does not know where."""
        if not self.future.done():
            self.future.set_result(None)
        partition = self.tp.partition
        time_ms = timestamp if timestamp is not None and timestamp >= 0 else None
        step = 1 if base_offset >= 0 else 0
        offset = base_offset
        for ack in self.acks:
            if not ack.done():
                ack.set_result(Appended(partition, offset, time_ms))
            offset += step

    def failure(self, exception: BaseException) -> None:
        """Certainly refused at the first attempt, or in doubt."""
        if self.retry_count <= 1 and isinstance(exception, _TOO_LARGE + _REFUSED):
            kind = RecordTooLarge if isinstance(exception, _TOO_LARGE) else AppendFailed
            # the broker did not count them, and nothing of this partition was sent since
            self.sequences.increment_sequence_number(self.tp, -self.record_count)
            self.fail(kind(f"{self.tp.topic}: {describe(exception)}"))
        else:
            self.on_doubt(f"{self.tp.topic}/{self.tp.partition}: {describe(exception)}")
        if not self.future.done():
            self.future.set_exception(exception)
        self.future.exception()  # nobody else looks
        if not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Tells whoever waits; the batch itself stays where aiokafka's sender expects it."""
        for ack in self.acks:
            fail(ack, error)

    @property
    def created_s(self) -> float:
        """When its first record came, on `time.monotonic`."""
        return float(self._ctime)


def fail(ack: Ack, error: Exception) -> None:
    """Ends an append; one that nobody awaits is not reported as a lost exception."""
    if not ack.done():
        ack.set_exception(error)
        ack.exception()


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
        batch: Batch = batches[-1] if batches else self._open(partition)
        listed = list(headers)
        if not batch.add(value, key, listed, ack):
            batch = self._open(partition)
            if not batch.add(value, key, listed, ack):
                raise RecordTooLarge("the record does not fit an empty batch")
        weight = len(value or b"") + len(key or b"")
        batch.weight_bytes += weight
        self.waiting_bytes += weight

    def _open(self, partition: tuple[str, int]) -> Batch:
        tp = TopicPartition(*partition)
        batch = Batch(tp, self.create_builder(), self._batch_ttl, self._linger_time)
        batch.acks = []
        batch.weight_bytes = 0
        batch.on_doubt = self.on_doubt
        batch.sequences = self._txn_manager
        batch.future.add_done_callback(lambda _: self._let_go(batch))
        self._batches[tp].append(batch)
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
