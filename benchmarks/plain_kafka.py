"""Kafka without any of ours: the bare round trip to compare with, and how many records there are."""

import uuid
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

VALUE = b"x" * 300  # about what a request and an event weigh


async def count_records(bootstrap: str, topic: str) -> int:
    """End offsets of all partitions, summed: records appended since the topic was made."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        if not partitions:
            raise SystemExit(f"there is no topic {topic}")
        return int(sum((await consumer.end_offsets(partitions)).values()))
    finally:
        await consumer.stop()


class RoundTrip:
    """produce → consume → produce → consume, in one process: the least that two hops can take."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        suffix = uuid.uuid4().hex[:8]
        self._topics = [f"round-trip-there-{suffix}", f"round-trip-back-{suffix}"]
        self._producers: list[Any] = []
        self._consumers: list[Any] = []

    async def __aenter__(self) -> Self:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(it, 1, 1) for it in self._topics])
        await admin.close()
        for topic in self._topics:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True
            )
            await producer.start()
            self._producers.append(producer)
            consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
            await consumer.start()
            self._consumers.append(consumer)
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
        return self

    async def go(self) -> None:
        """There and back."""
        for topic, producer, consumer in zip(
            self._topics, self._producers, self._consumers, strict=True
        ):
            await producer.send(topic, VALUE, partition=0)
            await consumer.getone()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for client in [*self._producers, *self._consumers]:
            await client.stop()
