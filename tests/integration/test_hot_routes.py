"""The short way in answers as the framework would; the framework serves the rest."""

import pytest

from core.errors import Refusal
from producer_api.hot_routes import hot_routes
from producer_api.routes import openai, requests
from tests.fake_pipeline import MODEL, FakePipeline, client, finished, tokens

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def test_what_makes_requests_is_hot_and_nothing_else() -> None:
    routes = [*openai.router.routes, *requests.router.routes]
    assert set(hot_routes(routes)) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/requests",
    }


async def test_a_hot_route_answers_and_is_documented_all_the_same() -> None:
    async with client(FakePipeline([[tokens(2, text="hi", end=True), finished(2)]])) as http:
        answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "hello"})
        described = (await http.get("/openapi.json")).json()["paths"]
    assert answer.json()["choices"][0]["text"] == "hi"
    assert "post" in described["/v1/completions"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/requests"])
async def test_another_method_on_a_hot_path_is_refused_by_the_framework(path: str) -> None:
    async with client(FakePipeline()) as http:
        answer = await http.get(path)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_a_refusal_on_a_hot_route_has_its_status_and_is_counted() -> None:
    async with client(FakePipeline(refusal=Refusal("too_many_streams", "Later."))) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "too_many_streams"


class Broken(FakePipeline):
    def check_model(self, name: str) -> None:  # type: ignore[override]
        raise RuntimeError("a bug")


async def test_a_handler_that_fails_is_answered_with_500_and_no_detail() -> None:
    async with client(Broken()) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "bug" not in answer.text
