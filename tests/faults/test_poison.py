"""Faults that lie in the records themselves, beside others that run on (rows 3, 12 and 22)."""

import asyncio
import json
import secrets
import sys
from collections import Counter
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from schemas.codec import RECORD_BYTES_MAX, encode
from schemas.ids import make_request_id
from schemas.replies import Finished
from schemas.requests import COMPLETIONS, Body, Request
from tests.faults.attempts import wall_ms
from tests.faults.conftest import Load
from tests.faults.operation import POISON, scripted_answer
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import LogView, view
from tests.running_up import clean_environ
from topics.catalogue import request_topic

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(200)]

TOPIC = request_topic("default", "standard")
TENANT = "default"
STALE_MS = 3_600_000


def a_request(prompt: str, *, age_ms: int = 0, **more: Any) -> Request:
    """As a topic producer would make it."""
    return Request(
        id=make_request_id(wall_ms() - age_ms, secrets.randbelow(4), secrets.randbits(62)),
        tenant=TENANT,
        tier="standard",
        model="scripted",
        endpoint=COMPLETIONS,
        body=Body(prompt=prompt, max_tokens=5, **more),
    )


async def produce(stack: RunningStack, *values: bytes) -> list[tuple[str, int]]:
    """Appends them by turns to the partitions; returns their origins."""
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.bootstrap, acks="all", max_request_size=RECORD_BYTES_MAX * 2
    )
    async with producer:
        acks = [
            await producer.send_and_wait(TOPIC, value, partition=index % 4)
            for index, value in enumerate(values)
        ]
    return [(f"{it.topic}/{it.partition}", it.offset) for it in acks]


async def ask(stack: RunningStack, prompt: str) -> tuple[int, str]:
    """Status and error code of a request that ends badly."""
    headers = {"Authorization": f"Bearer {stack.key}", "x-stainless-retry-count": "0"}
    body = {"model": "scripted", "prompt": prompt, "max_tokens": 5}
    async with httpx.AsyncClient(headers=headers, timeout=90.0, trust_env=False) as client:
        answer = await client.post(f"{stack.replicas[1]}/v1/completions", json=body)
    return answer.status_code, answer.json()["error"]["code"]


def garbage() -> dict[str, bytes]:
    """Records that are no requests, or none of this version, or none that may run."""
    it = a_request("what is not to be run")
    later = json.loads(encode(it)) | {"v": 2}
    many = msgspec.structs.replace(it.body, n=10_000)
    return {
        "bytes": b"\xff\xfe\x00 no request",
        "a later version": json.dumps(later).encode(),
        "huge": b'{"v":1,"tenant":"' + b"x" * RECORD_BYTES_MAX + b'"}',
        "too many choices": encode(msgspec.structs.replace(it, body=many)),
    }


async def test_what_cannot_be_read_is_parked_and_others_run_on(
    stack: RunningStack, load: Load
) -> None:
    """Row 12: each of it is a dead letter, each partition moves on, and nobody beside it notices."""
    async with load(stack, 601, requests=150, ok_share=1.0) as clients:
        await asyncio.sleep(2.0)
        values = garbage()
        origins = await produce(stack, *values.values(), *values.values())
    assert clients.read is not None
    reasons = [clients.read.letters[it] for it in origins]
    assert reasons == ["undecodable", "undecodable", "undecodable", "invalid_request"] * 2


@pytest.mark.parametrize(
    "marker",
    [
        pytest.param(POISON[0], id="kills its worker"),
        pytest.param(POISON[1], id="kills its engine", marks=pytest.mark.slow),
    ],
)
async def test_poison_is_parked_and_innocents_are_not(
    stack: RunningStack, load: Load, marker: str
) -> None:
    """Rows 3 and 12: whatever runs it dies, three times; all that ran beside it is answered whole."""
    async with load(stack, 602, requests=300, ok_share=1.0) as clients:
        await asyncio.sleep(2.0)
        prompt = f"{secrets.token_hex(3)}: {marker}"
        assert await ask(stack, prompt) == (500, "poison")
    assert clients.read is not None
    parked = {
        request.body.prompt: clients.read.letters[origin]
        for origin, (request, _) in clients.read.requests.items()
        if request is not None and origin in clients.read.letters
    }
    assert parked[prompt] == "poison"
    # what ran beside it went on mid-sentence, elsewhere or on another engine
    mine = {it.request_id for it in clients.history}
    answers = clients.read.replies.answers
    assert any(it.runs > 1 for (_, name), it in answers.items() if name in mine)


class Letters:
    """`inferlog dead-letters` in a process of its own, as an operator types it."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack

    async def __call__(self, *words: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inferlog", "dead-letters", *words, "--json"),
            *("--bootstrap", self._stack.bootstrap, "--data-dir", str(self._stack.folder)),
            env=clean_environ(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode in (0, 1), err
        found: dict[str, Any] = json.loads(out)
        return found

    async def parked(self, reason: str, *request_ids: str) -> dict[str, str]:
        """Waits for these requests' letters; id -> address."""
        async with asyncio.timeout(60):
            while True:
                told = await self("list", "--reason", reason, "--limit", "1000")
                found = {it["request_id"]: it["letter"] for it in told["letters"]}
                if set(request_ids) <= set(found):
                    return {it: found[it] for it in request_ids}
                await asyncio.sleep(0.5)


def redriven(found: LogView, old_id: str) -> list[str]:
    """What became of each request that was made of a letter: its text, once it is finished."""
    texts = []
    for request, _ in found.read.requests.values():
        if request is not None and request.redrive_of == old_id:
            answer = found.read.answer((TENANT, request.id))
            assert isinstance(answer.terminal, Finished)
            texts.append(answer.text(0))
    return texts


@pytest.mark.slow
async def test_letters_redriven_while_others_run_are_new_requests(
    stack: RunningStack, load: Load
) -> None:
    """Row 22: one letter, then some by a filter, then one a second time, which must be asked for."""
    letters = Letters(stack)
    run = secrets.token_hex(3)
    old = [a_request(f"{run} too late {number}", age_ms=STALE_MS) for number in range(4)]
    async with load(stack, 603, requests=250, per_second=12.0, ok_share=1.0):
        await produce(stack, *map(encode, old))
        places = await letters.parked("stale_id", *(it.id for it in old))
        first = await letters("redrive", places[old[0].id])
        assert len(first["redriven"]) == 1
        refused = await letters("redrive", places[old[0].id])
        assert refused["redriven"] == []
        assert "--again" in refused["failed"][0]["error"]
        rest = await letters("redrive", "all", "--reason", "stale_id", "--tenant", TENANT)
        assert {it["letter"] for it in rest["redriven"]} >= {places[it.id] for it in old[1:]}
        again = await letters("redrive", places[old[0].id], "--again")
        assert len(again["redriven"]) == 1
    found = await view(stack.bootstrap)
    counts = Counter({it.id: len(redriven(found, it.id)) for it in old})
    assert [counts[it.id] for it in old] == [2, 1, 1, 1]
    for it in old:
        assert set(redriven(found, it.id)) == {scripted_answer(str(it.body.prompt), 5)}


@pytest.mark.slow
async def test_poison_that_is_redriven_is_parked_again_and_harms_nobody(
    stack: RunningStack, load: Load
) -> None:
    """Rows 12 and 22: the operator was wrong."""
    letters = Letters(stack)
    poison = a_request(f"{secrets.token_hex(3)}: {POISON[1]}")
    async with load(stack, 604, requests=500, per_second=15.0, ok_share=1.0):
        await produce(stack, encode(poison))
        places = await letters.parked("poison", poison.id)
        (told,) = (await letters("redrive", places[poison.id]))["redriven"]
        assert told["new_id"] != poison.id
        await letters.parked("poison", told["new_id"])
