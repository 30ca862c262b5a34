"""Reading given partitions: a consumer by manual assignment, without a group."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from topics.ports import OffsetOutOfRange, Partition, Record

_log = logging.getLogger(__name__)


def _record(message: Any) -> Record:
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.timestamp,
        message.key,
        message.value,
        tuple(message.headers),
    )


async def fetch(consumer: AIOKafkaConsumer, wait_seconds: float, count: int) -> list[Record]:
    """The next records of a consumer; a broker that is away means none, not an error."""
    try:
        batches = await consumer.getmany(timeout_ms=int(wait_seconds * 1000), max_records=count)
    except OffsetOutOfRangeError as error:
        raise OffsetOutOfRange(str(error)) from error
    except KafkaError as error:
        _log.warning("reading failed, trying again: %s", error)
        await asyncio.sleep(min(0.5, wait_seconds))
        return []
    return [_record(message) for batch in batches.values() for message in batch]


class KafkaTail:
    """A consumer with assigned partitions and no group."""

    def __init__(self, consumer: AIOKafkaConsumer, positions: Mapping[Partition, int]) -> None:
        self._consumer = consumer
        self._positions: dict[Partition, int] = {}
        self.assign(positions)

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """See `topics.ports.Tail`."""
        self._positions = dict(positions)
        self._consumer.assign([TopicPartition(*partition) for partition in positions])
        for partition, offset in positions.items():
            self._consumer.seek(TopicPartition(*partition), offset)

    async def read(self, max_wait_seconds: float = 0.5, max_records: int = 1000) -> list[Record]:
        """See `topics.ports.Tail`."""
        records = await fetch(self._consumer, max_wait_seconds, max_records)
        for record in records:
            self._positions[Partition(record.topic, record.partition)] = record.offset + 1
        return records

    def position(self, partition: Partition) -> int:
        """See `topics.ports.Tail`."""
        return self._positions[partition]

    async def close(self) -> None:
        """Ends the client."""
        await stop_consumer(self._consumer)


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Ends a consumer, bounded in time."""
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(5.0):
            await consumer.stop()
