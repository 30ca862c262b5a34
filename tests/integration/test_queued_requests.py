"""What a request meets while every slot is taken: its first byte, a cancel, a client that leaves."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.limits import DEFAULT_LIMITS
from inferlog.local_ports import any_free
from producer_api.app import ApiService
from producer_api.settings import ApiSettings
from schemas.codec import UndecodableRecord, decode_reply
from schemas.ids import parse_request_id
from schemas.replies import Cancelled, Events, Started
from topics.catalogue import REPLIES, TopicSettings, catalogue
from topics.kafka import KafkaLog
from topics.ports import Partition
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

POOL = "queued"
MODEL = "queued-model"
KEY = "a-key-for-tests"
CONTEXT_TOKENS = 64
FIRST_BYTE_SECONDS = 2.0


@dataclass
class Stack:
    """One API replica and one worker with a single slot."""

    log: KafkaLog
    worker: InferenceService
    port: int
    client: httpx.AsyncClient

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def gauge(self, name: str) -> float:
        value = self.worker.metrics.registry.get_sample_value(f"inferlog_{name}")
        assert value is not None, name
        return value

    async def until(self, running: int, waiting: int) -> None:
        """The worker's metrics say so."""
        async with asyncio.timeout(10):
            while (self.gauge("requests_running"), self.gauge("requests_waiting")) != (
                running,
                waiting,
            ):
                await asyncio.sleep(0.02)

    async def events(self, request_id: str) -> list[Any]:
        """Every event of the request that lies on its reply partition now, valid or not."""
        here = Partition(REPLIES, parse_request_id(request_id).reply_partition)
        starts, ends = await self.log.start_offsets([here]), await self.log.end_offsets([here])
        tail = await self.log.tail(starts)
        found: list[Any] = []
        try:
            while tail.position(here) < ends[here]:
                for record in await tail.read(max_wait_seconds=0.5):
                    with contextlib.suppress(UndecodableRecord):
                        reply = decode_reply(record.value)
                        if isinstance(reply, Events):
                            found += [it for it in reply.events if it.id == request_id]
        finally:
            await tail.close()
        return found

    async def until_cancelled(self, request_id: str) -> list[Any]:
        async with asyncio.timeout(10):
            while True:
                events = await self.events(request_id)
                if events and isinstance(events[-1], Cancelled):
                    return events
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(
    kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    cluster = ClusterSettings(bootstrap=kafka_bootstrap)
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    options = ("slots=1", "tokens_per_second=10", f"context_tokens={CONTEXT_TOKENS}")
    worker = InferenceService(
        WorkerSettings(
            cluster=cluster,
            pool=POOL,
            engine="scripted",
            model=MODEL,
            engine_option=(*options, "fail=stall:hold the slot"),
            worker_id=POOL,
        )
    )
    await worker.start()
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(f"one:{KEY}\n")
    keys.chmod(0o600)
    port = any_free("127.0.0.1", 1)
    limits = replace(DEFAULT_LIMITS, first_byte_seconds=FIRST_BYTE_SECONDS)
    api = ApiService(ApiSettings(cluster=cluster, port=port, api_keys_file=keys, limits=limits))
    await api.start()
    while not worker.owns_all():
        await asyncio.sleep(0.05)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=20.0) as http:
        made = Stack(log, worker, port, http)
        async with asyncio.timeout(10):
            while MODEL not in (await http.get(made.url("/v1/models"))).text:
                await asyncio.sleep(0.05)
        yield made
    await api.drain()
    await api.stop()
    await worker.stop(drain=False)
    await log.close()


def chat(prompt: str, **more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}


async def background(stack: Stack, prompt: str) -> str:
    accepted = await stack.client.post(
        stack.url("/v1/requests"),
        json={"endpoint": "/v1/chat/completions", "body": chat(prompt, max_tokens=4)},
    )
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["id"])


async def cancel(stack: Stack, request_id: str) -> None:
    done = await stack.client.post(stack.url(f"/v1/requests/{request_id}/cancel"))
    assert done.json()["status"] == "cancelled", done.text


@pytest_asyncio.fixture(loop_scope="session")
async def held(stack: Stack) -> AsyncIterator[str]:
    """The only slot is taken, by this request, until the end of the test."""
    request_id = await background(stack, "hold the slot")
    await stack.until(running=1, waiting=0)
    yield request_id
    await cancel(stack, request_id)
    await stack.until(running=0, waiting=0)


async def newest_waiting(stack: Stack) -> str:
    """The id of the request in the worker's queue."""
    assert stack.worker.worker is not None
    await stack.until(running=1, waiting=1)
    return next(
        it.request.id for it in stack.worker.worker.scheduler.works() if it.started_s is None
    )


async def test_a_cancel_of_a_queued_request_leaves_the_queue_and_never_starts(
    stack: Stack, held: str
) -> None:
    request_id = await background(stack, "wait for it")
    await stack.until(running=1, waiting=1)
    await cancel(stack, request_id)
    await stack.until(running=1, waiting=0)
    events = await stack.until_cancelled(request_id)
    assert [type(it) for it in events] == [Cancelled]
    assert events[0].counts == (0,)
    status = await stack.client.get(stack.url(f"/v1/requests/{request_id}"))
    assert status.json()["status"] == "cancelled"
    # whoever held the slot is untouched
    assert [type(it) for it in await stack.events(held)] == [Started]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_queued_frees_its_place(
    stack: Stack, held: str, stream: bool
) -> None:
    body = chat("wait and leave", max_tokens=4, stream=stream)
    asking = asyncio.create_task(stack.client.post(stack.url("/v1/chat/completions"), json=body))
    request_id = await newest_waiting(stack)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await stack.until(running=1, waiting=0)
    assert [type(it) for it in await stack.until_cancelled(request_id)] == [Cancelled]


async def test_the_status_line_of_a_queued_stream_leaves_in_time_and_leaving_then_cancels(
    stack: Stack, held: str
) -> None:
    began_s = time.monotonic()
    body = chat("wait for the first byte", max_tokens=4, stream=True)
    async with stack.client.stream(
        "POST", stack.url("/v1/chat/completions"), json=body
    ) as response:
        took_s = time.monotonic() - began_s
        request_id = response.headers["X-Request-Id"]
        assert response.status_code == 200
    # not at once, as a refusal by the worker would still be a status; and not much later
    assert FIRST_BYTE_SECONDS * 0.9 <= took_s <= FIRST_BYTE_SECONDS + 3.0
    await stack.until(running=1, waiting=0)
    assert [type(it) for it in await stack.until_cancelled(request_id)] == [Cancelled]


async def test_a_slot_that_is_freed_mid_stream_goes_to_the_next(stack: Stack) -> None:
    body = chat("leave in the middle", max_tokens=50, stream=True)
    async with stack.client.stream(
        "POST", stack.url("/v1/chat/completions"), json=body
    ) as response:
        lines = response.aiter_lines()  # kept: without it the connection would close at once
        async for line in lines:
            if "content" in line:
                break
        first = response.headers["X-Request-Id"]
        second = await background(stack, "my turn")
        await stack.until(running=1, waiting=1)
    events = await stack.until_cancelled(first)
    assert 0 < events[-1].counts[0] < 50
    async with asyncio.timeout(10):
        while True:
            status = await stack.client.get(stack.url(f"/v1/requests/{second}"))
            if status.json()["status"] == "completed":
                break
            await asyncio.sleep(0.05)
    await stack.until(running=0, waiting=0)
    assert stack.gauge("engine_slots") == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_prompt_beyond_the_context_is_a_400_whatever_the_form(
    stack: Stack, path: str, stream: bool
) -> None:
    long = " ".join(["word"] * (CONTEXT_TOKENS + 1))
    body: dict[str, object] = chat(long) if "chat" in path else {"model": MODEL, "prompt": long}
    answer = await stack.client.post(stack.url(path), json={**body, "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert str(CONTEXT_TOKENS) in error["message"]
    assert "word" not in error["message"]
    fitting = {**body, "max_tokens": 1}
    fitting["prompt" if "prompt" in body else "messages"] = (
        "short" if "prompt" in body else [{"role": "user", "content": "short"}]
    )
    assert (await stack.client.post(stack.url(path), json=fitting)).status_code == 200
    await stack.until(running=0, waiting=0)


async def test_the_api_bounds_a_head_while_it_arrives(stack: Stack) -> None:
    """The bounded protocol is the one that the API serves."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 100_000)
    with contextlib.suppress(OSError):
        await writer.drain()
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
    writer.close()
