"""One request published twice, late and elsewhere, and ids that are too old, on a real broker."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.limits import DEFAULT_LIMITS
from core.stream import Reader, Visible
from schemas.codec import UndecodableRecord, decode_letter, decode_reply
from schemas.ids import make_request_id, parse_request_id
from schemas.operations import DeadLetter
from schemas.replies import Events, Finished, Started, Tokens
from topics.catalogue import DEAD_LETTERS, REPLIES, TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.ports import Partition
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

POOL = "late"
TOPIC = request_topic(POOL, "standard")
LATE_SECONDS = DEFAULT_LIMITS.claim_lease_seconds + 2.0
STALE_SECONDS = DEFAULT_LIMITS.total_seconds + 60.0


@dataclass
class Served:
    """A pool with one worker of one slot, ten tokens a second, and a plain producer."""

    log: KafkaLog
    worker: InferenceService
    producer: AIOKafkaProducer

    async def put(self, value: bytes, partition: int) -> int:
        """Appends a request record; returns its offset."""
        return int((await self.producer.send_and_wait(TOPIC, value, partition=partition)).offset)

    def counted(self, name: str, **labels: str) -> float:
        value = self.worker.metrics.registry.get_sample_value(f"inferlog_{name}_total", labels)
        return value or 0.0

    async def raw(self, topic: str, partition: int) -> list[bytes]:
        """Every value of a partition, up to its end as it is now."""
        here = Partition(topic, partition)
        starts, ends = await self.log.start_offsets([here]), await self.log.end_offsets([here])
        tail = await self.log.tail(starts)
        found: list[bytes] = []
        try:
            while tail.position(here) < ends[here]:
                found += [it.value or b"" for it in await tail.read(max_wait_seconds=0.5)]
        finally:
            await tail.close()
        return found

    async def said(self, request_id: str) -> tuple[list[Any], list[Visible]]:
        """Every event of a request as written, and what the reader's rule makes visible of it."""
        reader = Reader()
        written: list[Any] = []
        visible: list[Visible] = []
        for value in await self.raw(REPLIES, parse_request_id(request_id).reply_partition):
            with contextlib.suppress(UndecodableRecord):
                reply = decode_reply(value)
                if isinstance(reply, Events):
                    written += [it for it in reply.events if it.id == request_id]
                visible += [it for it in reader.feed(reply) if it.id == request_id]
        return written, visible

    async def until_said(self, request_id: str, kind: type) -> None:
        async with asyncio.timeout(20):
            while not any(isinstance(it, kind) for it in (await self.said(request_id))[1]):
                await asyncio.sleep(0.1)

    async def until_committed(self, partition: int, offset: int) -> None:
        """The offset, and all before it, are complete."""
        q = Partition(TOPIC, partition)
        async with asyncio.timeout(20):
            while True:
                at = (await self.log.committed(f"inferlog.{TOPIC}", [q])).get(q)
                if at is not None and at.offset is not None and at.offset > offset:
                    return
                await asyncio.sleep(0.1)

    async def letters(self) -> list[DeadLetter]:
        found = [decode_letter(value) for value in await self.raw(DEAD_LETTERS, 0)]
        return [it for it in found if isinstance(it, DeadLetter)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(kafka_bootstrap: str) -> AsyncIterator[Served]:
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    worker = InferenceService(
        WorkerSettings(
            cluster=ClusterSettings(bootstrap=kafka_bootstrap),
            engine="scripted",
            engine_option=("slots=1", "tokens_per_second=10"),
            worker_id=POOL,
            pool=POOL,
        )
    )
    await worker.start()
    async with asyncio.timeout(30):
        while not worker.owns_all():
            await asyncio.sleep(0.05)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all")
    async with producer:
        yield Served(log, worker, producer)
    await worker.stop(drain=False)
    await log.close()


def an_id(age_seconds: float) -> str:
    moment_ms = int((time.time() - age_seconds) * 1000)
    return make_request_id(moment_ms, secrets.randbelow(4), secrets.randbits(62))


def record(request_id: str, prompt: str, max_tokens: int) -> bytes:
    value = {
        "id": request_id,
        "tenant": "default",
        "tier": "standard",
        "pool": POOL,
        "model": "scripted",
        "endpoint": "/v1/completions",
        "body": {"prompt": prompt, "max_tokens": max_tokens},
    }
    return json.dumps(value).encode()


def answer(prompt: str, count: int) -> str:
    mark = sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{index} " for index in range(count))


def text_of(visible: list[Visible]) -> str:
    return "".join(it.text for it in visible if isinstance(it, Tokens))


def origins(written: list[Any]) -> set[tuple[str, int]]:
    return {(it.q, it.offset) for it in written}


async def test_a_late_record_whose_id_was_never_spoken_for_runs(served: Served) -> None:
    request_id = an_id(LATE_SECONDS)
    before = served.counted("late_copies", outcome="run")
    await served.put(record(request_id, "never published", 4), 0)
    await served.until_said(request_id, Finished)
    assert text_of((await served.said(request_id))[1]) == answer("never published", 4)
    assert served.counted("late_copies", outcome="run") == before + 1


async def test_a_late_copy_of_a_request_that_is_done_says_nothing(served: Served) -> None:
    request_id = an_id(LATE_SECONDS)
    value = record(request_id, "done before", 3)
    before = served.counted("late_copies", outcome="done")
    first = await served.put(value, 0)
    await served.until_said(request_id, Finished)
    await served.until_committed(1, await served.put(value, 1))
    written, visible = await served.said(request_id)
    assert origins(written) == {(f"{TOPIC}/0", first)}
    assert [type(it) for it in written].count(Finished) == 1
    assert text_of(visible) == answer("done before", 3)
    assert served.counted("late_copies", outcome="done") == before + 1


async def test_a_late_copy_of_a_request_that_runs_is_completed_and_never_started(
    served: Served,
) -> None:
    request_id = an_id(LATE_SECONDS)
    value = record(request_id, "still running", 50)
    first = await served.put(value, 0)
    await served.until_said(request_id, Started)
    await served.until_committed(1, await served.put(value, 1))
    written, _ = await served.said(request_id)
    # the copy ended while the first one runs
    assert not any(isinstance(it, Finished) for it in written)
    await served.until_said(request_id, Finished)
    written, visible = await served.said(request_id)
    assert origins(written) == {(f"{TOPIC}/0", first)}
    assert text_of(visible) == answer("still running", 50)


async def test_of_two_copies_of_which_none_had_started_one_is_visible(served: Served) -> None:
    """Nothing of either is on the log when both are asked about: both may run, unseen by readers."""
    holder, request_id = an_id(0.0), an_id(LATE_SECONDS)
    holding = await served.put(record(holder, "takes the slot", 20), 2)
    await served.until_said(holder, Started)
    value = record(request_id, "twice in the queue", 5)
    offsets = [await served.put(value, partition) for partition in (0, 1)]
    for partition, offset in enumerate(offsets):
        await served.until_committed(partition, offset)
    await served.until_committed(2, holding)
    written, visible = await served.said(request_id)
    assert origins(written) <= {(f"{TOPIC}/{q}", offset) for q, offset in enumerate(offsets)}
    assert text_of(visible) == answer("twice in the queue", 5)
    assert [type(it) for it in visible].count(Finished) == 1
    assert len({(it.q, it.offset) for it in visible if isinstance(it, Tokens | Finished)}) == 1


async def test_an_id_that_is_too_old_is_a_dead_letter_and_nothing_on_replies(
    served: Served,
) -> None:
    stale, next_one = an_id(STALE_SECONDS), an_id(0.0)
    offset = await served.put(record(stale, "too old", 2), 3)
    await served.put(record(next_one, "behind it", 2), 3)
    await served.until_said(next_one, Finished)
    await served.until_committed(3, offset)
    letters = [it for it in await served.letters() if it.request_id == stale]
    assert [(it.reason, it.topic, it.partition, it.offset) for it in letters] == [
        ("stale_id", TOPIC, 3, offset)
    ]
    written, visible = await served.said(stale)
    assert (written, visible) == ([], [])
    assert text_of((await served.said(next_one))[1]) == answer("behind it", 2)


async def test_an_id_from_the_future_is_a_dead_letter_and_nothing_on_replies(
    served: Served,
) -> None:
    early = an_id(-DEFAULT_LIMITS.clock_skew_seconds - 30.0)
    offset = await served.put(record(early, "not yet", 2), 3)
    await served.until_committed(3, offset)
    async with asyncio.timeout(10):
        while not any(it.request_id == early for it in await served.letters()):
            await asyncio.sleep(0.1)
    assert await served.said(early) == ([], [])
