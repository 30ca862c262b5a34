"""A program that knows only Kafka: asks by a record, reads its answer; bad records are parked."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from schemas.codec import UndecodableRecord, decode_letter, decode_reply
from schemas.ids import make_request_id
from schemas.operations import DeadLetter
from schemas.replies import Events, Failed
from topics.catalogue import DEAD_LETTERS, REPLIES, TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plain_producer.py"
POOL = "plain"  # request topics of its own; the other topics are shared with the other tests
TOPIC = request_topic(POOL, "standard")
KEY = b"default:0"  # what the example uses: all records of this file lie in one partition


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bootstrap(kafka_bootstrap: str) -> AsyncIterator[str]:
    """A cluster whose pool is served by one worker with the scripted engine."""
    log = KafkaLog(kafka_bootstrap)
    settings = WorkerSettings(
        cluster=ClusterSettings(bootstrap=kafka_bootstrap),
        engine="scripted",
        worker_id="t1",
        metrics_port=0,
        pool=POOL,
    )
    await log.create(catalogue(POOL, TopicSettings()))
    service = InferenceService(settings)
    try:
        await service.start()
        async with asyncio.timeout(30):
            while not service.owns_all():
                await asyncio.sleep(0.05)
        yield kafka_bootstrap
    finally:
        await service.stop()
        await log.close()


async def run_example(bootstrap: str, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE), "--bootstrap", bootstrap, "--pool", POOL),
        *("--timeout-seconds", "20", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def scripted_answer(prompt: str, tokens: int) -> str:
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{i} " for i in range(tokens))


async def append(
    bootstrap: str, values: list[tuple[bytes, list[tuple[str, Any]]]]
) -> list[tuple[int, int]]:
    """Partition and offset of each value with its headers, appended by a plain client."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        max_request_size=3_000_000,
    )
    async with producer:
        sent = [
            await producer.send_and_wait(TOPIC, value, key=KEY, headers=headers)
            for value, headers in values
        ]
    return [(it.partition, it.offset) for it in sent]


async def read_from(bootstrap: str, topic: str, partition: int) -> AsyncGenerator[bytes, None]:
    reader = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    async with reader:
        reader.assign([TopicPartition(topic, partition)])
        await reader.seek_to_beginning()
        async for message in reader:
            yield message.value


async def dead_letters_of(bootstrap: str, places: list[tuple[int, int]]) -> list[DeadLetter]:
    """The dead letters of records at (partition, offset) of the topic, in the order of `places`."""
    found: dict[tuple[int, int], DeadLetter] = {}
    async with asyncio.timeout(20):
        async with contextlib.aclosing(read_from(bootstrap, DEAD_LETTERS, 0)) as values:
            async for value in values:
                letter = decode_letter(value)
                if isinstance(letter, DeadLetter) and letter.topic == TOPIC:
                    found[letter.partition, letter.offset] = letter
                if all(place in found for place in places):
                    break
    return [found[place] for place in places]


async def failure_of(bootstrap: str, request_id: str, reply_partition: int) -> Failed:
    async with asyncio.timeout(20):
        async with contextlib.aclosing(read_from(bootstrap, REPLIES, reply_partition)) as values:
            async for value in values:
                try:
                    record = decode_reply(value)
                except UndecodableRecord:
                    continue  # the broker is shared: another test puts garbage on `replies`
                for event in record.events if isinstance(record, Events) else ():
                    if isinstance(event, Failed) and event.id == request_id:
                        return event
    raise AssertionError("the reply partition ended")


def a_request(request_id: str, tier: str = "standard", **body: Any) -> bytes:
    record = {
        "id": request_id,
        "tenant": "default",
        "tier": tier,
        "pool": POOL,
        "model": "scripted",
        "endpoint": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "hello"}], **body},
    }
    return json.dumps(record).encode()


def an_id(reply_partition: int, age_seconds: float = 0.0) -> str:
    moment_ms = int((time.time() - age_seconds) * 1000)
    return make_request_id(moment_ms, reply_partition, secrets.randbits(62))


async def test_a_plain_kafka_client_gets_its_answer(bootstrap: str) -> None:
    code, out, err = await run_example(
        bootstrap, "--model", "scripted", "--max-tokens", "7", "plain hello"
    )
    assert (code, out) == (0, scripted_answer("plain hello", 7) + "\n"), err
    assert err.startswith("finished ")
    assert json.loads(err.removeprefix("finished "))["completion_tokens"] == 7


async def test_a_refusal_by_the_worker_reaches_the_plain_client(bootstrap: str) -> None:
    code, out, err = await run_example(bootstrap, "--model", "nobody", "plain hello")
    assert (code, out) == (1, "\n")
    assert err.startswith("failed ")
    assert json.loads(err.removeprefix("failed "))["code"] == "model_not_found"


async def test_bad_records_are_parked_with_their_reason_and_the_partition_moves_on(
    bootstrap: str,
) -> None:
    torn, bad_body, misspelt = an_id(1), an_id(2), an_id(3)
    places = await append(
        bootstrap,
        [
            (b"{torn", []),
            (
                b"{torn too",
                [("inferlog-request-id", torn.encode()), ("inferlog-tenant", b"default")],
            ),
            (a_request(bad_body, temperature=9), []),
            (a_request(misspelt, temprature=1), []),
            (a_request("no-id-at-all"), []),
            (a_request(an_id(4095)), []),
            (a_request(an_id(0, age_seconds=3000)), []),
            (a_request(an_id(0, age_seconds=20), tier="premium"), []),
        ],
    )
    code, out, err = await run_example(bootstrap, "--model", "scripted", "behind the bad ones")
    assert (code, out) == (0, scripted_answer("behind the bad ones", 16) + "\n"), err

    letters = await dead_letters_of(bootstrap, places)
    assert [letter.reason for letter in letters] == [
        *("undecodable", "undecodable", "invalid_request", "undecodable"),
        *("bad_request_id", "bad_request_id", "stale_id", "invalid_request"),
    ]
    assert letters[0].value == b"{torn"
    assert letters[0].request_id is None
    assert (letters[1].request_id, letters[1].tenant) == (torn, "default")
    assert "temperature" in letters[2].detail
    assert "temprature" in letters[3].detail
    assert "'tier'" in letters[7].detail

    failed = await failure_of(bootstrap, torn, 1)
    assert failed.error.code == "undecodable"
    failed = await failure_of(bootstrap, bad_body, 2)
    assert (failed.error.code, failed.error.param) == ("invalid_request", "temperature")


async def test_headers_without_a_value_and_giant_ones_are_parked_too(bootstrap: str) -> None:
    """A worker must not die of either, nor set aside a letter that nobody can read."""
    long = "x" * 2_000_000
    too_long = a_request(an_id(1)).replace(b'"default"', b'"%s"' % long.encode(), 1)
    places = await append(
        bootstrap,
        [
            (b"{torn", [("inferlog-request-id", None), ("inferlog-tenant", None)]),
            (b"{torn", [("a-header", long.encode()), ("another", b"")]),
            (too_long, []),
        ],
    )
    code, _, err = await run_example(bootstrap, "--model", "scripted", "behind the odd ones")
    assert code == 0, err
    nameless, giant, whose = await dead_letters_of(bootstrap, places)
    assert nameless.headers == (("inferlog-request-id", b""), ("inferlog-tenant", b""))
    assert giant.headers == ()
    assert giant.detail.endswith("(without its 2 headers)")
    assert (whose.reason, whose.tenant) == ("invalid_request", None)
