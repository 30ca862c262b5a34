"""Default deny: no key, no answer; another tenant's ids do not exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from core.limits import DEFAULT_LIMITS
from producer_api.app import make_app
from producer_api.auth import ApiKeys, KeysUnusable, load_keys
from producer_api.gate import OPEN_PATHS
from runtime.metrics import Metrics
from schemas.requests import RESPONSES, RequestInfo
from tests.fake_pipeline import KEY, MODEL, OTHER_KEY, REQUEST_ID, FakePipeline, client


def _inner_app() -> FastAPI:
    gate: Any = make_app(
        FakePipeline(),  # type: ignore[arg-type]
        ApiKeys({KEY: "a"}),
        DEFAULT_LIMITS,
        Metrics(),
    )
    app: FastAPI = gate._app._app  # behind the short way in
    return app


def _routes() -> Iterator[tuple[str, str]]:
    """Every (method, path) that the application declares, whatever declared it."""
    for path, operations in _inner_app().openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path
    for route in _inner_app().routes:
        if not isinstance(route, APIRoute):
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, getattr(route, "path", "/")


ROUTES = sorted(
    {
        (m, re.sub(r"{(request|response)_id}", REQUEST_ID, p).replace("{name}", MODEL))
        for m, p in _routes()
    }
)


def test_the_enumeration_finds_the_routes_there_are() -> None:
    paths = {path for _, path in ROUTES}
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/requests",
        f"/v1/requests/{REQUEST_ID}/stream",
        f"/v1/requests/{REQUEST_ID}/ticket",
        "/v1/responses",
        f"/v1/responses/{REQUEST_ID}",
        f"/v1/responses/{REQUEST_ID}/cancel",
        "/docs",
        "/openapi.json",
        "/health/live",
    } <= paths


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong-key-of-a", f"Basic {KEY}", KEY, f"Bearer {KEY}x"],
)
@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nowhere"), ("POST", "/v1/x")])
async def test_without_a_valid_key_every_route_answers_401(
    method: str, path: str, authorization: str
) -> None:
    pipeline = FakePipeline()
    async with client(pipeline) as http:
        answer = await http.request(method, path, headers={"Authorization": authorization})
    if path in OPEN_PATHS:
        assert answer.status_code in (200, 405)
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert not pipeline.submitted
    assert not pipeline.cancelled


@pytest.mark.parametrize("prefix", ["", "chatcmpl-", "cmpl-", "resp_"])
@pytest.mark.parametrize(
    ("method", "base", "suffix"),
    [
        ("GET", "requests", ""),
        ("GET", "requests", "/stream"),
        ("POST", "requests", "/cancel"),
        ("POST", "requests", "/ticket"),
        ("GET", "responses", ""),
        ("GET", "responses", "?stream=true"),
        ("POST", "responses", "/cancel"),
        ("DELETE", "responses", ""),
    ],
)
async def test_an_id_of_another_tenant_is_not_found(
    method: str, base: str, suffix: str, prefix: str
) -> None:
    info = RequestInfo(endpoint=RESPONSES, model=MODEL, tier="standard", stream=True)
    pipeline = FakePipeline(info=info)
    path = f"/v1/{base}/{prefix}{REQUEST_ID}{suffix}"
    async with client(pipeline) as http:
        answer = await http.request(method, path, headers={"Authorization": f"Bearer {OTHER_KEY}"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert pipeline.cancelled == []
    assert pipeline.deleted == set()


async def test_the_scheme_may_be_written_in_any_case() -> None:
    async with client(FakePipeline()) as http:
        answer = await http.get("/v1/models", headers={"Authorization": f"bearer {KEY}"})
    assert answer.status_code == 200


async def test_health_needs_no_key_and_tells_why_it_is_not_ready() -> None:
    pipeline = FakePipeline(unready="starting")
    async with client(pipeline) as http:
        live = await http.get("/health/live", headers={"Authorization": ""})
        ready = await http.get("/health/ready", headers={"Authorization": ""})
    assert (live.status_code, ready.status_code) == (200, 503)
    assert ready.json() == {"status": "starting"}


def _file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_of_a_file_belong_to_their_tenants(tmp_path: Path) -> None:
    keys = load_keys(
        "the-default-key", _file(tmp_path, "# ours\n\nred: red-key-1\nblue:blue-key-1\n")
    )
    asked = [b"Bearer red-key-1", b"Bearer blue-key-1", b"Bearer the-default-key", b"Bearer red"]
    assert [keys.tenant(it) for it in asked] == ["red", "blue", "default", None]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="chmod 600"):
        load_keys(None, _file(tmp_path, "red:red-key-1\n", mode=0o640))


def test_a_line_without_a_tenant_is_refused_and_never_shown(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="line 2: tenant:key is expected") as raised:
        load_keys(None, _file(tmp_path, "red:red-key-1\nvery-secret-key\n"))
    assert "very-secret-key" not in str(raised.value)


def test_no_key_at_all_is_refused() -> None:
    with pytest.raises(KeysUnusable, match="no API key"):
        load_keys(None, None)
