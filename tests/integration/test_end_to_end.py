"""The whole pipeline on real parts but the engine: HTTP, Kafka, a worker, Kafka, SSE."""

import asyncio
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from producer_api.app import ApiService
from producer_api.settings import ApiSettings
from topics.catalogue import TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.ports import Partition
from topics.settings import ClusterSettings

pytestmark = pytest.mark.kafka

KEY = "a-key-for-tests"
OTHER_KEY = "another-key-for-tests"
POOL = "e2e"


@dataclass
class Stack:
    """Two API replicas and a worker on their own pool; `ports` are the replicas' own."""

    log: KafkaLog
    worker: InferenceService
    ports: list[int]
    client: httpx.AsyncClient

    def url(self, replica: int, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[replica]}{path}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(
    kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    cluster = ClusterSettings(bootstrap=kafka_bootstrap)
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    options = ("tokens_per_second=200", "slots=64")
    worker = InferenceService(
        WorkerSettings(
            cluster=cluster, pool=POOL, engine="scripted", engine_option=options, worker_id="e2e"
        )
    )
    await worker.start()
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(f"one:{KEY}\ntwo:{OTHER_KEY}\n")
    keys.chmod(0o600)
    replicas = [
        ApiService(
            ApiSettings(
                cluster=cluster,
                port=free_port(),
                replica_index=index,
                replica_count=2,
                api_keys_file=keys,
            )
        )
        for index in range(2)
    ]
    for replica in replicas:
        await replica.start()
    while not worker.owns_all():
        await asyncio.sleep(0.05)
    headers = {"Authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(headers=headers, timeout=20.0, limits=limits) as client:
        ports = [replica.settings.port for replica in replicas]
        yield Stack(log, worker, ports, client)
    for replica in replicas:
        await replica.drain()
        await replica.stop()
    await worker.stop(drain=False)
    await log.close()


def answer(prompt: str, count: int) -> str:
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{index} " for index in range(count))


def chat(prompt: str, **more: object) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": prompt}], **more}


def events(text: str) -> list[tuple[int, dict[str, object]]]:
    found = re.findall(r"id: (\d+)\ndata: (\{.*\})\n", text)
    return [(int(position), json.loads(data)) for position, data in found]


def text_of(chunks: list[tuple[int, dict[str, object]]]) -> str:
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for _, chunk in chunks
        for choice in chunk["choices"]  # type: ignore[attr-defined]
    )


async def until_idle(stack: Stack) -> None:
    assert stack.worker.worker is not None
    async with asyncio.timeout(10):
        while stack.worker.worker.scheduler.running:
            await asyncio.sleep(0.02)


async def test_openai_sdk_chat_and_completion(stack: Stack) -> None:
    client = AsyncOpenAI(base_url=stack.url(0, "/v1"), api_key=KEY, max_retries=0)
    whole = await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "one two"}], max_tokens=5
    )
    assert whole.choices[0].message.content == answer("one two", 5)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 5)
    stream = await client.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "one two"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer("one two", 5)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    completion = await client.completions.create(model="scripted", prompt="x", max_tokens=3, n=2)
    assert [it.text for it in completion.choices] == [answer("x", 3)] * 2
    await client.close()


async def test_openai_sdk_errors(stack: Stack) -> None:
    client = AsyncOpenAI(base_url=stack.url(0, "/v1"), api_key=KEY, max_retries=0)
    with pytest.raises(NotFoundError):
        await client.chat.completions.create(
            model="unknown", messages=[{"role": "user", "content": "x"}]
        )
    with pytest.raises(BadRequestError, match="between 1 and 8"):
        await client.completions.create(model="scripted", prompt="x", n=99)
    # only the worker knows the context: still an HTTP status
    with pytest.raises(BadRequestError) as found:
        await client.completions.create(model="scripted", prompt="x", max_tokens=131_072)
    assert found.value.code == "context_length_exceeded"
    wrong = AsyncOpenAI(base_url=stack.url(0, "/v1"), api_key="wrong", max_retries=0)
    with pytest.raises(AuthenticationError):
        await wrong.models.list()
    await client.close()
    await wrong.close()


async def test_a_stream_goes_on_at_any_position_on_the_replica_that_is_not_home(
    stack: Stack,
) -> None:
    accepted = await stack.client.post(
        stack.url(0, "/v1/requests"),
        json={"endpoint": "/v1/chat/completions", "body": chat("resume me", max_tokens=40)},
    )
    assert accepted.status_code == 202
    request_id = accepted.json()["id"]
    path = f"/v1/requests/{request_id}"
    first = await stack.client.get(stack.url(1, f"{path}/stream"))
    whole = events(first.text)
    assert text_of(whole) == answer("resume me", 40)
    assert [position for position, _ in whole] == sorted(position for position, _ in whole)
    for position in {position for position, _ in whole if 0 < position < 40}:
        rest = await stack.client.get(
            stack.url(1, f"{path}/stream"), headers={"Last-Event-ID": str(position)}
        )
        before = text_of([it for it in whole if it[0] <= position])
        assert before + text_of(events(rest.text)) == answer("resume me", 40)
    status = (await stack.client.get(stack.url(1, path))).json()
    assert status["status"] == "completed"
    assert status["response"]["choices"][0]["message"]["content"] == answer("resume me", 40)
    read = await stack.client.get(stack.url(0, f"{path}/stream"), headers={"Last-Event-ID": "40"})
    assert read.status_code == 204
    other = {"Authorization": f"Bearer {OTHER_KEY}"}
    for hidden in (path, f"{path}/stream"):
        assert (await stack.client.get(stack.url(0, hidden), headers=other)).status_code == 404
    assert (
        await stack.client.post(stack.url(0, f"{path}/cancel"), headers=other)
    ).status_code == 404


async def test_one_key_from_100_clients_over_two_replicas_runs_once(stack: Stack) -> None:
    topic = request_topic(POOL, "standard")
    qs = [Partition(topic, index) for index in range(await stack.log.partition_count(topic))]
    before = await stack.log.end_offsets(qs)

    async def post(index: int) -> httpx.Response:
        return await stack.client.post(
            stack.url(index % 2, "/v1/chat/completions"),
            json=chat("only once", max_tokens=8),
            headers={"Idempotency-Key": '"once"'},
        )

    answers = await asyncio.gather(*(post(index) for index in range(100)))
    statuses = {it.status_code for it in answers}
    assert statuses <= {200, 409}
    assert 200 in statuses
    after = await stack.log.end_offsets(qs)
    assert sum(after.values()) - sum(before.values()) == 1
    again = await post(1)
    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    bodies = {it.text for it in answers if it.status_code == 200} | {again.text}
    assert len(bodies) == 1
    changed = await stack.client.post(
        stack.url(0, "/v1/chat/completions"),
        json=chat("something else"),
        headers={"Idempotency-Key": "once"},
    )
    assert changed.status_code == 422


async def test_work_handed_in_again_under_its_key_is_told_as_it_is_now(stack: Stack) -> None:
    async def post(replica: int) -> httpx.Response:
        return await stack.client.post(
            stack.url(replica, "/v1/requests"),
            json={"endpoint": "/v1/chat/completions", "body": chat("handed in", max_tokens=3)},
            headers={"Idempotency-Key": "handed-in"},
        )

    first = await post(0)
    assert (first.status_code, first.json()["status"]) == (202, "queued")
    async with asyncio.timeout(10):
        while (again := await post(1)).status_code == 409:
            await asyncio.sleep(0.05)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["status"] == "completed"
    message = again.json()["response"]["choices"][0]["message"]
    assert message["content"] == answer("handed in", 3)


async def test_attach_joins_a_running_request(stack: Stack) -> None:
    body = chat("attach", max_tokens=200)
    headers = {"Idempotency-Key": "attach", "Prefer": "inferlog=attach"}
    first = asyncio.create_task(
        stack.client.post(stack.url(0, "/v1/chat/completions"), json=body, headers=headers)
    )
    await asyncio.sleep(0.5)
    second = await stack.client.post(
        stack.url(1, "/v1/chat/completions"), json=body, headers=headers
    )
    assert second.status_code == 200
    assert second.json() == (await first).json()


async def test_closing_the_connection_frees_the_slot(stack: Stack) -> None:
    url = stack.url(0, "/v1/chat/completions")
    async with stack.client.stream(
        "POST", url, json=chat("leave", max_tokens=4000, stream=True)
    ) as response:
        async for line in response.aiter_lines():
            if "content" in line:
                break
        request_id = response.headers["X-Request-Id"]
    await until_idle(stack)
    status = await stack.client.get(stack.url(1, f"/v1/requests/{request_id}"))
    assert status.json()["status"] == "cancelled"


async def test_cancel_ends_a_request_that_runs(stack: Stack) -> None:
    accepted = await stack.client.post(
        stack.url(0, "/v1/requests"),
        json={
            "endpoint": "/v1/completions",
            "body": {"model": "scripted", "prompt": "stop me", "max_tokens": 4000},
        },
    )
    path = f"/v1/requests/{accepted.json()['id']}"
    cancelled = await stack.client.post(stack.url(1, f"{path}/cancel"))
    assert cancelled.json()["status"] == "cancelled"
    again = await stack.client.post(stack.url(0, f"{path}/cancel"))
    assert again.json()["status"] == "cancelled"
    await until_idle(stack)


async def test_a_deadline_in_flight_is_a_504(stack: Stack) -> None:
    late = await stack.client.post(
        stack.url(0, "/v1/chat/completions"),
        json=chat("too slow", max_tokens=4000),
        headers={"Inferlog-Timeout": "0.5"},
    )
    assert late.status_code == 504
    assert late.headers["x-should-retry"] == "false"
    await until_idle(stack)


@pytest.mark.timeout(90)
async def test_2000_requests_from_64_clients_are_complete_and_committed(stack: Stack) -> None:
    async def client(number: int) -> None:
        for round_number in range(2000 // 64 + 1):
            prompt = f"client {number} round {round_number}"
            response = await stack.client.post(
                stack.url(number % 2, "/v1/chat/completions"), json=chat(prompt, max_tokens=8)
            )
            body = response.json()
            assert response.status_code == 200, body
            assert body["choices"][0]["message"]["content"] == answer(prompt, 8)

    await asyncio.gather(*(client(number) for number in range(64)))
    topic = request_topic(POOL, "standard")
    qs = [Partition(topic, index) for index in range(await stack.log.partition_count(topic))]
    ends = {q: end for q, end in (await stack.log.end_offsets(qs)).items() if end}
    async with asyncio.timeout(10):
        while True:
            committed = await stack.log.committed(f"inferlog.{topic}", qs)
            if {q: at.offset for q, at in committed.items() if at.offset} == ends:
                break
            await asyncio.sleep(0.1)
