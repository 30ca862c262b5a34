"""OpenAI's own client and the Responses API, on two replicas of a running system; one is killed."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai import AsyncOpenAI

from tests.running_replicas import RunningReplicas

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(90)]

MODEL = "scripted"


@pytest.fixture(scope="module")
def up(kafka_libs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReplicas]:
    running = RunningReplicas(tmp_path_factory.mktemp("up"))
    try:
        yield running.wait()
    finally:
        running.stop()


@pytest.fixture
async def clients(up: RunningReplicas) -> AsyncIterator[list[AsyncOpenAI]]:
    """One for each replica; nothing is retried behind the test's back."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            AsyncOpenAI(api_key=up.key, base_url=f"{base}/v1", max_retries=0)
            for base in up.replicas
        ]
        yield [await stack.enter_async_context(it) for it in made]


def expected(prompt: str, count: int) -> str:
    name = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{name}.{index} " for index in range(count))


async def test_a_whole_response_repeats_what_was_asked(clients: list[AsyncOpenAI]) -> None:
    response = await clients[0].responses.create(
        model=MODEL,
        instructions="Be brief.",
        input="hi",
        max_output_tokens=5,
        temperature=0.5,
        metadata={"order": "1"},
        service_tier="flex",
        user="ann",
    )
    assert response.output_text == expected("Be brief.\nhi", 5)
    assert (response.status, response.service_tier) == ("incomplete", "flex")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    again = await clients[1].responses.retrieve(response.id)
    assert again == response
    assert (again.instructions, again.metadata, again.user) == ("Be brief.", {"order": "1"}, "ann")


async def test_turns_can_be_sent_back(clients: list[AsyncOpenAI]) -> None:
    first = await clients[0].responses.create(model=MODEL, input="hi", max_output_tokens=2)
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *[it.model_dump(exclude_none=True) for it in first.output],
        {"role": "user", "content": "and?"},
    ]
    second = await clients[1].responses.create(model=MODEL, input=turns, max_output_tokens=2)
    assert second.output_text == expected(f"hi\n{first.output_text}\nand?", 2)


async def test_a_stream_can_be_gone_on_with_from_every_event_on_the_other_replica(
    clients: list[AsyncOpenAI],
) -> None:
    stream = await clients[0].responses.create(
        model=MODEL, input="go on", max_output_tokens=6, stream=True
    )
    events = [event async for event in stream]
    for event in events:
        type(event).model_validate(event.model_dump(warnings=False))
    assert [it.sequence_number for it in events] == [*range(5), *range(5, 11), *range(11, 15)]
    assert "".join(it.delta for it in events if it.type == "response.output_text.delta") == (
        expected("go on", 6)
    )
    created = events[0]
    assert created.type == "response.created"
    for after in range(-1, 14):
        more: dict[str, Any] = {} if after < 0 else {"starting_after": after}
        resumed = await clients[1].responses.retrieve(created.response.id, stream=True, **more)
        rest = [event async for event in resumed]
        assert rest == [it for it in events if it.sequence_number > after]
    with pytest.raises(openai.ConflictError) as raised:
        await clients[1].responses.retrieve(created.response.id, stream=True, starting_after=99)
    assert raised.value.code == "stream_cursor_expired"


async def test_the_stream_helper_of_the_client(clients: list[AsyncOpenAI]) -> None:
    async with clients[0].responses.stream(model=MODEL, input="helper") as stream:
        deltas = [it.delta async for it in stream if it.type == "response.output_text.delta"]
        final_error: RuntimeError | None = None
        try:
            await stream.get_final_response()
        except RuntimeError as error:  # it knows of no other end than completed
            final_error = error
    assert "".join(deltas) == expected("helper", 16)
    assert final_error is not None, "16 tokens is where the scripted engine stops, by length"
    async with clients[0].responses.stream(
        model=MODEL, input="helper", text={"format": {"type": "text"}}
    ) as stream:
        started = [it async for it in stream if it.type == "response.created"]
        response_id = started[0].response.id
    async with clients[1].responses.stream(response_id=response_id, starting_after=9) as stream:
        numbers = [it.sequence_number async for it in stream]
    assert numbers[0] == 10


async def test_background_is_polled_on_any_replica(clients: list[AsyncOpenAI]) -> None:
    response = await clients[0].responses.create(
        model=MODEL, input="later", max_output_tokens=10, background=True
    )
    assert response.status == "queued"
    turn = 0
    seen: set[str | None] = set()
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(0.1)
        turn += 1
        response = await clients[turn % 2].responses.retrieve(response.id)
        seen.add(response.status)
    assert response.output_text == expected("later", 10)
    assert "in_progress" in seen
    with pytest.raises(openai.BadRequestError, match="not created with 'stream'"):
        await clients[0].responses.retrieve(response.id, stream=True)


async def test_a_background_stream_outlives_its_connection(clients: list[AsyncOpenAI]) -> None:
    stream = await clients[0].responses.create(
        model=MODEL, input="outlive", max_output_tokens=20, background=True, stream=True
    )
    response_id, last, text = "", -1, ""
    async for event in stream:
        last = event.sequence_number
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
            if last >= 8:
                break
    await stream.close()
    await asyncio.sleep(0.3)
    rest = await clients[1].responses.retrieve(response_id, stream=True, starting_after=last)
    async for event in rest:
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == expected("outlive", 20)


async def test_cancel_is_idempotent_and_told_by_every_replica(clients: list[AsyncOpenAI]) -> None:
    response = await clients[0].responses.create(
        model=MODEL, input="stop me", max_output_tokens=2000, background=True, stream=True
    )
    created = await anext(aiter(response))
    assert created.type == "response.created"
    for client in (clients[1], clients[0], clients[1]):
        cancelled = await client.responses.cancel(created.response.id)
        assert cancelled.status == "cancelled"
    events = [event async for event in response]
    assert [it.type for it in events[-2:]] == ["error", "response.failed"]


async def test_deleted_is_gone_on_both_replicas_running_or_not(
    clients: list[AsyncOpenAI], up: RunningReplicas
) -> None:
    done = await clients[0].responses.create(model=MODEL, input="hi", max_output_tokens=1)
    running = await clients[0].responses.create(
        model=MODEL, input="hi", max_output_tokens=2000, background=True
    )
    for response in (done, running):
        await clients[1].responses.retrieve(response.id)
        raw = await clients[0].responses.with_raw_response.delete(response.id)
        assert raw.http_response.json() == {
            "id": response.id,
            "object": "response.deleted",
            "deleted": True,
        }
        for client in clients:
            for call in (client.responses.retrieve, client.responses.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(response.id)
        bare = response.id.removeprefix("resp_")
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {up.key}"}) as http:
            for base in up.replicas:
                for path in (bare, f"{bare}/stream", response.id):
                    answer = await http.get(f"{base}/v1/requests/{path}")
                    assert answer.status_code == 404


async def test_what_is_not_stored_cannot_be_fetched(clients: list[AsyncOpenAI]) -> None:
    response = await clients[0].responses.create(
        model=MODEL, input="hi", max_output_tokens=2, store=False
    )
    assert response.output_text == expected("hi", 2)
    for client in clients:
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="'background' needs 'store'"):
        await clients[0].responses.create(model=MODEL, input="x", store=False, background=True)


async def test_a_refusal_by_the_worker_has_a_status_or_is_told_by_the_object(
    clients: list[AsyncOpenAI],
) -> None:
    class Answer(pydantic.BaseModel):
        word: str

    # the scripted engine guides no decoding; that it was asked to shows that the schema got there
    with pytest.raises(openai.BadRequestError):
        await clients[0].responses.parse(model=MODEL, input="x", text_format=Answer)
    response = await clients[0].responses.create(
        model=MODEL, input="x", text={"format": {"type": "json_object"}}, background=True
    )
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(0.05)
        response = await clients[1].responses.retrieve(response.id)
    assert response.status == "failed"
    assert response.error is not None
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_object"


async def test_the_pipelines_own_routes_take_a_response(up: RunningReplicas) -> None:
    headers = {"Authorization": f"Bearer {up.key}"}
    body = {"model": MODEL, "input": "inner", "max_output_tokens": 3}
    async with httpx.AsyncClient(headers=headers, timeout=20) as http:
        made = await http.post(
            f"{up.replicas[0]}/v1/requests", json={"endpoint": "/v1/responses", "body": body}
        )
        assert made.status_code == 202
        path = f"{up.replicas[1]}/v1/requests/{made.json()['id']}"
        streamed = await http.get(f"{path}/stream")
        ids = [line for line in streamed.text.split("\n") if line.startswith("id: ")]
        assert ids[-1] == "id: 11"
        last = {"Last-Event-ID": "11"}
        assert (await http.get(f"{path}/stream", headers=last)).status_code == 204
        status = (await http.get(path)).json()
    assert status["status"] == "completed"
    assert status["response"]["output"][0]["content"][0]["text"] == expected("inner", 3)


class Reader:
    """A client that goes on behind the last event it has, on the other replica."""

    def __init__(
        self, up: RunningReplicas, http: httpx.AsyncClient, prompt: str, length: int
    ) -> None:
        self._replicas = up.replicas
        self._http = http
        self._body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": length,
            "stream": True,
        }
        self._request_id = ""
        self._last = "0"
        self._done = False
        self.text = ""
        self.turns = 0
        self.under_way = asyncio.Event()

    async def read(self) -> None:
        while not self._done and self.turns < 20:
            with contextlib.suppress(httpx.TransportError):
                async with self._call(self._replicas[self.turns % 2]) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    self._request_id = answer.headers["x-request-id"]
                    await self._take(answer)
            self.turns += 1
        assert self._done

    def _call(self, base: str) -> Any:
        if self._request_id:
            url = f"{base}/v1/requests/{self._request_id}/stream"
            return self._http.stream("GET", url, headers={"Last-Event-ID": self._last})
        url, prefer = f"{base}/v1/chat/completions", {"Prefer": "inferlog=resumable"}
        return self._http.stream("POST", url, json=self._body, headers=prefer)

    async def _take(self, answer: httpx.Response) -> None:
        position = self._last
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                position = value
            elif name == "data" and value == "[DONE]":
                self._done = True
            elif name == "data":
                self.text += json.loads(value)["choices"][0]["delta"].get("content", "")
                self._last = position
                if int(position) >= 3:
                    self.under_way.set()


async def test_two_hundred_streams_outlive_the_replica_they_are_read_from(
    up: RunningReplicas,
) -> None:
    """Killed with SIGKILL: each goes on where it was, with no gap and nothing twice."""
    length = 60
    headers = {"Authorization": f"Bearer {up.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=30, limits=limits) as http:
        readers = [Reader(up, http, f"stream {number}", length) for number in range(200)]
        reading = [asyncio.create_task(it.read()) for it in readers]
        async with asyncio.timeout(60):
            await asyncio.gather(*[it.under_way.wait() for it in readers])
        up.kill_replica(0)
        await asyncio.gather(*reading)
    for number, it in enumerate(readers):
        assert it.text == expected(f"stream {number}", length)
    assert any(it.turns > 1 for it in readers), "nobody had to go on elsewhere"
