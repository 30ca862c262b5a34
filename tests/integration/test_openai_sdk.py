"""OpenAI's own client against a real server: forms, retries, and closing; no log behind it."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pydantic
import pytest
import uvicorn
from openai import APIError, APIStatusError, AsyncOpenAI, InternalServerError

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS
from core.stream import Visible
from producer_api.app import make_app
from producer_api.auth import ApiKeys
from producer_api.submission import Draft, IdempotencyKey, Submission
from runtime.metrics import Metrics
from schemas.replies import ErrorInfo, Failed
from tests.fake_pipeline import KEY, MODEL, REQUEST_ID, FakePipeline, finished, tokens

ANSWER: list[list[Visible]] = [
    [tokens(2, text="ab")],
    [tokens(1, text="c", seq=2, end=True), finished(3)],
]
ASK = [{"role": "user", "content": "hi"}]


@dataclass
class Refusing(FakePipeline):
    """Refuses the first submissions, one by one."""

    refusals: list[Refusal] = field(default_factory=list)
    asked: int = 0

    async def submit(
        self,
        draft: Draft,
        *,
        idempotency: IdempotencyKey | None = None,
        traceparent: str | None = None,
        followed: bool = True,
    ) -> Submission:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        self.info = draft.request(REQUEST_ID, "default").info()
        return await super().submit(
            draft, idempotency=idempotency, traceparent=traceparent, followed=followed
        )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(pipeline: FakePipeline) -> AsyncIterator[int]:
    """The application on a port of its own."""
    limits = dataclasses.replace(DEFAULT_LIMITS, receive_seconds=0.5, first_byte_seconds=0.3)
    app = make_app(pipeline, ApiKeys({KEY: "a"}), limits, Metrics())  # type: ignore[arg-type]
    config = uvicorn.Config(app, lifespan="off", log_config=None, http="httptools")
    server = _Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listening]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


@contextlib.asynccontextmanager
async def sdk(pipeline: FakePipeline, max_retries: int = 2) -> AsyncIterator[Any]:
    async with serving(pipeline) as port:
        url = f"http://127.0.0.1:{port}/v1"
        async with AsyncOpenAI(api_key=KEY, base_url=url, max_retries=max_retries) as client:
            yield client


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.02)


def unavailable() -> Refusal:
    return Refusal("unavailable", "The log cannot be reached.", retry_after_seconds=0.05)


async def test_a_chat_answer_has_all_that_the_client_reads() -> None:
    async with sdk(Refusing(batches=ANSWER)) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == "abc"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 6
    assert answer.id == f"chatcmpl-{REQUEST_ID}"
    assert answer._request_id == REQUEST_ID
    assert answer.service_tier == "default"


async def test_a_streamed_chat_is_the_same_text_in_pieces() -> None:
    async with sdk(Refusing(batches=ANSWER)) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(it.choices[0].delta.content or "" for it in chunks) == "abc"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [it.choices[0].finish_reason for it in chunks][-1] == "stop"


async def test_a_completion_whole_and_streamed() -> None:
    async with sdk(Refusing(batches=ANSWER)) as client:
        whole = await client.completions.create(model=MODEL, prompt="hi")
        stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
    assert whole.choices[0].text == "".join(pieces) == "abc"


async def test_an_answer_can_be_sent_back_as_history() -> None:
    async with sdk(pipeline := Refusing(batches=ANSWER)) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
        history = [*ASK, answer.choices[0].message.model_dump(), *ASK]
        await client.chat.completions.create(model=MODEL, messages=history)
    assert len(pipeline.submitted) == 2


@pytest.mark.parametrize(
    "refusal",
    [unavailable(), Refusal("overloaded", "Too many requests.", retry_after_seconds=0.05)],
    ids=["503", "429"],
)
async def test_the_client_retries_by_itself_what_can_be_retried(refusal: Refusal) -> None:
    async with sdk(pipeline := Refusing(batches=ANSWER, refusals=[refusal, refusal])) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == "abc"
    assert pipeline.asked == 3


@pytest.mark.parametrize("code", ["idempotency_in_progress", "deadline_exceeded"])
async def test_the_client_does_not_retry_where_that_would_do_harm(code: str) -> None:
    async with sdk(pipeline := Refusing(refusals=[Refusal(code, "No.")] * 3)) as client:
        with pytest.raises(APIStatusError) as raised:
            await client.chat.completions.create(model=MODEL, messages=ASK)
    assert raised.value.code == code
    assert pipeline.asked == 1


def _failed(count: int) -> Failed:
    end = finished(count)
    return Failed(
        id=end.id,
        tenant=end.tenant,
        q=end.q,
        offset=end.offset,
        epoch=end.epoch,
        counts=end.counts,
        error=ErrorInfo(code="engine_failed", message="The engine failed."),
    )


async def test_a_failure_before_the_first_token_is_a_status_even_of_a_stream() -> None:
    async with sdk(Refusing(batches=[[_failed(0)]]), max_retries=0) as client:
        with pytest.raises(InternalServerError) as raised:
            await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    assert raised.value.code == "engine_failed"
    assert raised.value.request_id == REQUEST_ID


async def test_a_failure_after_the_first_token_is_an_error_of_the_stream() -> None:
    async with sdk(Refusing(batches=[[tokens(2, text="ab")], [_failed(2)]])) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        chunks = aiter(stream)
        pieces = [(await anext(chunks)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(APIError, match="The engine failed"):
            await anext(chunks)
    assert pieces == ["", "ab"]


async def test_a_response_whole_and_streamed() -> None:
    async with sdk(Refusing(batches=ANSWER)) as client:
        whole = await client.responses.create(model=MODEL, input="hi")
        async with client.responses.stream(model=MODEL, input="hi") as stream:
            types = [event.type async for event in stream]
            final = await stream.get_final_response()
    assert (whole.output_text, whole.status) == ("abc", "completed")
    assert final.output_text == "abc"
    assert final.output[0].content[0].parsed is None
    assert types[-1] == "response.completed"
    assert whole.id == final.id == f"resp_{REQUEST_ID}"
    assert whole.usage.total_tokens == 6


async def test_an_answer_that_follows_a_schema_is_parsed() -> None:
    class Word(pydantic.BaseModel):
        word: str

    answer: list[Visible] = [tokens(1, text='{"word": "yes"}', end=True), finished(1)]
    async with sdk(pipeline := Refusing(batches=[answer])) as client:
        response = await client.responses.parse(model=MODEL, input="hi", text_format=Word)
    assert response.output_parsed == Word(word="yes")
    wanted = pipeline.submitted[0].body.response_format
    assert wanted is not None
    assert wanted.schema == response.text.format.schema_


async def test_a_response_that_fails_has_a_status_before_and_events_after_its_first_token() -> None:
    async with sdk(Refusing(batches=[[_failed(0)]]), max_retries=0) as client:
        with pytest.raises(InternalServerError) as raised:
            await client.responses.create(model=MODEL, input="hi", stream=True)
    assert raised.value.code == "engine_failed"
    async with sdk(Refusing(batches=[[tokens(2, text="ab")], [_failed(2)]])) as client:
        stream = await client.responses.create(model=MODEL, input="hi", stream=True)
        events = [event async for event in stream]
    assert [it.type for it in events[-2:]] == ["error", "response.failed"]
    assert (events[-2].code, events[-2].message) == ("engine_failed", "The engine failed.")
    assert events[-1].response.status == "failed"


async def test_a_response_in_the_background_is_there_at_once_and_closing_cancels_nothing() -> None:
    never: list[list[Visible]] = []
    async with sdk(pipeline := Refusing(batches=never)) as client:
        queued = await client.responses.create(model=MODEL, input="hi", background=True)
        stream = await client.responses.create(
            model=MODEL, input="hi", background=True, stream=True
        )
        async with asyncio.timeout(0.25):  # less than the first byte of a plain stream may take
            created = await anext(aiter(stream))
        await stream.close()
        await asyncio.sleep(0.2)
    assert (queued.status, created.type) == ("queued", "response.created")
    assert pipeline.cancelled == []


async def test_closing_a_stream_cancels_its_request() -> None:
    async with sdk(pipeline := Refusing(batches=[[tokens(2, text="ab")]])) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await until(lambda: pipeline.cancelled == [("a", REQUEST_ID)])


@pytest.mark.parametrize(
    "headers",
    [{"Idempotency-Key": "k"}, {"Prefer": "inferlog=resumable"}],
    ids=["keyed", "resumable"],
)
async def test_closing_cancels_nothing_that_can_be_fetched_again(headers: dict[str, str]) -> None:
    async with sdk(pipeline := Refusing(batches=[[tokens(2, text="ab")]])) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, extra_headers=headers
        )
        await anext(aiter(stream))
        await stream.close()
        await asyncio.sleep(0.3)
    assert pipeline.cancelled == []


async def exchange(port: int, *pieces: bytes) -> bytes:
    """Sends the pieces, a moment apart, and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def head(*lines: str) -> bytes:
    first = ["POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


async def test_a_body_that_never_ends_is_answered_408_and_the_connection_closed() -> None:
    async with serving(pipeline := Refusing()) as port:
        answer = await exchange(port, head("Content-Length: 100"), b'{"model"')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"not received within 0.5 s" in answer
    assert pipeline.submitted == []


async def test_a_large_body_without_a_length_is_answered_413_and_the_connection_closed() -> None:
    piece = b"20000\r\n" + b" " * 0x20000 + b"\r\n"
    async with serving(pipeline := Refusing()) as port:
        answer = await exchange(port, head("Transfer-Encoding: chunked"), *[piece] * 9)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert pipeline.submitted == []
