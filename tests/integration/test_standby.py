"""More workers than partitions: those that get none stand by, and count as ready."""

import uuid

import pytest

from tests.memory_stack import MemoryStack, scripted_answer, text_of
from topics.catalogue import TopicSettings
from topics.kafka import KafkaLog
from topics.memory import MemoryLog
from topics.ports import Log


async def three_workers_share_one_partition(log: Log) -> None:
    stack = MemoryStack(log, pool=f"standby-{uuid.uuid4().hex[:8]}")
    await stack.start(TopicSettings(request_partitions=1))
    try:
        for name in ("one", "two", "three"):
            await stack.worker(name=name, session_seconds=6.0)  # returns when it is ready
        given = [tier.assigned for it in stack.workers for tier in it._tiers]
        assert given.count(frozenset()) == 2 * len(stack.workers[0]._tiers)
        await stack.open_api()
        request_id = await stack.ask("who is there", 5)
        assert text_of(await stack.read(request_id)) == scripted_answer("who is there", 5)
    finally:
        await stack.stop()


async def test_a_worker_that_gets_no_partition_is_ready() -> None:
    await three_workers_share_one_partition(MemoryLog())


@pytest.mark.kafka
@pytest.mark.timeout(60)
async def test_a_worker_that_gets_no_partition_of_a_real_kafka_is_ready(
    kafka_bootstrap: str,
) -> None:
    log = KafkaLog(kafka_bootstrap, client_id="standby")
    try:
        await three_workers_share_one_partition(log)
    finally:
        await log.close()
