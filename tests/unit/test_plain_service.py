import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import httpx
import pytest

from benchmarks.plain_service import PlainService, make_app
from consumers.inference.engine.options import make_engine

PATH = "/v1/chat/completions"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    service = PlainService(make_engine("scripted", None, ("slots=1024",)))
    await service.start()
    transport = httpx.ASGITransport(make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://plain") as found:
        yield found
    await service.stop()


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": prompt}], **more}


def expected(prompt: str, tokens: int) -> str:
    prefix = sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{prefix}.{i} " for i in range(tokens))


def events(text: str) -> list[Any]:
    """All but the last, which is `[DONE]`."""
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


async def test_a_buffered_answer_is_the_engines_word_for_word(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=chat("two words", max_tokens=3, temperature=0.5))
    assert answer.status_code == 200
    told = answer.json()
    assert told["object"] == "chat.completion"
    assert told["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected("two words", 3),
    }
    assert told["choices"][0]["finish_reason"] == "length"
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


async def test_a_stream_is_the_engines_word_for_word(client: httpx.AsyncClient) -> None:
    wanted = chat("x", max_tokens=16, stream=True, stream_options={"include_usage": True})
    answer = await client.post(PATH, json=wanted)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(answer.text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(it["delta"].get("content", "") for it in choices) == expected("x", 16)
    assert [it["finish_reason"] for it in choices] == [None, None, "length"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 16


async def test_without_a_wish_for_it_a_stream_tells_no_usage(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=chat("x", max_completion_tokens=2, stream=True))
    told = events(answer.text)
    assert all("usage" not in chunk for chunk in told)
    assert "".join(it["choices"][0]["delta"].get("content", "") for it in told) == expected("x", 2)


@pytest.mark.parametrize(
    "body", [b"{", b'{"model": "scripted"}', json.dumps({**chat("x"), "model": "another"}).encode()]
)
async def test_what_cannot_be_run_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(PATH, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_the_model_and_the_health_are_told(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()
    assert [it["id"] for it in models["data"]] == ["scripted"]
    assert (await client.get("/health")).json() == {"status": "ok"}
