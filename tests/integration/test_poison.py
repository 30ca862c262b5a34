"""A request that kills whatever runs it, among innocents, on real processes and a real Kafka."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from schemas.codec import decode_dead_letter
from schemas.operations import DeadLetter
from tests.running_up import RunningUp
from topics.catalogue import DEAD_LETTERS, request_topic
from topics.kafka import KafkaLog
from topics.ports import Partition

# every day `tests/faults/test_poison.py` shows the same beside a load
pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

KILLS = "POISON-KILLS-THE-PROCESS"
CRASHES = "POISON-CRASHES-THE-ENGINE"
INNOCENTS = 63


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def up(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningUp]:
    options = (
        "tokens_per_second=20",
        "ttft_ms=100",
        f"fail=kill_on:{KILLS}",
        f"fail=die_on:{CRASHES}",
    )
    words = [word for option in options for word in ("--engine-option", option)]
    more = ("--workers", "2", "--session-timeout-seconds", "2", "--limit-alone-hold-seconds", "2")
    async with RunningUp(tmp_path_factory.mktemp("poison"), *more, *words) as running:
        yield running


def expected(prompt: str, tokens: int) -> str:
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{i} " for i in range(tokens))


async def ask(client: httpx.AsyncClient, prompt: str, tokens: int) -> httpx.Response:
    body = {
        "model": "scripted",
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": prompt}],
    }
    return await client.post("/v1/chat/completions", json=body)


async def letters(log: KafkaLog) -> list[DeadLetter]:
    here = Partition(DEAD_LETTERS, 0)
    end = (await log.end_offsets([here]))[here]
    tail = await log.tail({here: 0})
    found: list[DeadLetter] = []
    try:
        while tail.position(here) < end:
            found += [decode_dead_letter(it.value) for it in await tail.read(0.5)]
    finally:
        await tail.close()
    return found


async def all_committed(log: KafkaLog) -> bool:
    topic = request_topic("default", "standard")
    here = [Partition(topic, index) for index in range(await log.partition_count(topic))]
    ends = await log.end_offsets(here)
    committed = await log.committed(f"inferlog.{topic}", here)
    return all(ends[it] == (committed[it].offset if it in committed else 0) for it in here)


@pytest.mark.parametrize(
    ("marker", "behind_seconds"),
    [
        (KILLS, 0.6),  # the innocent have tokens already
        (KILLS, 0.0),  # they have none: all that run beside it are suspects like itself
        (CRASHES, 0.0),
    ],
)
async def test_poison_is_parked_the_innocent_answered_and_the_partition_moves_on(
    up: RunningUp, marker: str, behind_seconds: float
) -> None:
    log = KafkaLog(up.state.bootstrap)
    try:
        before = len(await letters(log))
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(
            base_url=up.state.url, headers=up.headers(), timeout=150, limits=limits
        ) as client:
            prompts = [
                f"innocent {marker[-6:]} {behind_seconds} {number}" for number in range(INNOCENTS)
            ]
            running = [asyncio.create_task(ask(client, it, 30)) for it in prompts]
            await asyncio.sleep(behind_seconds)
            poison = await ask(client, f"please run {marker}", 5)
            answers = await asyncio.gather(*running)
            after = await ask(client, "is anybody there", 3)
        failures = {it.status_code: it.text for it in answers if it.status_code != 200}
        assert failures == {}
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.json()["choices"][0]["message"]["content"] == expected(prompt, 30)
        error = poison.json()["error"]
        assert (poison.status_code, error["code"]) == (500, "poison"), poison.text
        assert after.status_code == 200, after.text

        (letter,) = (await letters(log))[before:]
        assert letter.reason == "poison"
        assert letter.value is not None
        assert marker.encode() in letter.value
        assert [it.starts for it in letter.starts] == [1, 2, 3]
        async with asyncio.timeout(15):
            while not await all_committed(log):
                await asyncio.sleep(0.2)
    finally:
        await log.close()
