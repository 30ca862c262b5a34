"""The API as the commands call it: where it is, one streamed request, errors in plain words."""

import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from inferlog.client_settings import ClientSettings
from inferlog.data_dir import DataDir, first_key
from inferlog.problems import CommandFailed, WrongUsage

CONNECT_SECONDS = 5.0
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
REQUEST_ID = "x-request-id"


@dataclass(frozen=True, slots=True)
class Target:
    """An API and the key for it (not shown in `repr`)."""

    url: str
    key: str = field(repr=False)

    def client(self, connections: int = 8, read_seconds: float = 60.0) -> httpx.AsyncClient:
        """A client for this target; heartbeats come more often than `read_seconds`."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=httpx.Timeout(read_seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # an operator's proxy is for the outside world
            trust_env=False,
        )


class Refused(CommandFailed):
    """The API answered with an error; `code` is its error code, `status` the HTTP status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} (HTTP {status}, {code})")
        self.status = status
        self.code = code


class StreamCut(CommandFailed):
    """The answer ended without its end; `position` is that of the last chunk seen."""

    def __init__(self, message: str, position: int | None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream. `position` counts tokens up to it; `at_s` is when it came (monotonic)."""

    text: str
    position: int | None
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    at_s: float


@dataclass(slots=True)
class Streamed:
    """A running answer: its headers now, its chunks by `chunks()`."""

    request_id: str
    replayed: bool
    response: httpx.Response

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Raises Refused for an error event and StreamCut when the end never comes."""
        position: int | None = None
        try:
            async for event_id, data in sse_events(self.response.aiter_lines()):
                at_s = time.monotonic()
                if event_id is not None and event_id.isdecimal():
                    position = int(event_id)
                if data == "[DONE]":
                    return
                try:
                    body = json.loads(data)
                except ValueError:
                    raise StreamCut(
                        "the stream holds something that is not JSON", position
                    ) from None
                if "error" in body:
                    raise _refusal(self.response.status_code, body)
                yield _chunk(body, position, at_s)
        except httpx.HTTPError as error:
            raise StreamCut(f"the connection broke: {type(error).__name__}", position) from error
        raise StreamCut("the stream ended without its end", position)


def resolve(settings: ClientSettings, environ: Mapping[str, str] = os.environ) -> Target:
    """Address and key: what was given, else those of the running `inferlog up`. Raises CommandFailed."""
    data_dir = DataDir(settings.data_dir)
    state = data_dir.read_state()
    url = settings.url or (state.url if state else None)
    if url is None:
        raise CommandFailed(
            f"no `inferlog up` runs on {data_dir.path}. Start one, or name an API with --url and a "
            "key with INFERLOG_API_KEY."
        )
    if not url.startswith(("http://", "https://")):
        raise WrongUsage(f"--url={url}: an address such as http://127.0.0.1:8000 is expected")
    key = settings.api_key or environ.get("OPENAI_API_KEY" if settings.url else "INFERLOG_API_KEY")
    if key is None:
        file = state.api_keys_file if state else str(data_dir.path / "api-keys")
        key = first_key(Path(file)) if file and Path(file).exists() else None
    if key is None:
        raise WrongUsage("no API key: set INFERLOG_API_KEY")
    return Target(url.rstrip("/").removesuffix("/v1"), key)


async def sse_events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str | None, str]]:
    """(id, data) of each event; comments are skipped. The id is that of the event or an earlier one."""
    event_id: str | None = None
    data: list[str] = []
    async for line in lines:
        if not line:
            if data:
                yield event_id, "\n".join(data)
                data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            event_id = line[3:].strip()


async def open_stream(
    client: httpx.AsyncClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> Streamed:
    """POSTs and returns when the status is known. The caller closes `response`.

    Raises Refused, or CommandFailed when nobody answers.
    """
    request = client.build_request(
        "POST", path, json={**body, "stream": True}, headers=dict(headers)
    )
    try:
        response = await client.send(request, stream=True)
    except httpx.HTTPError as error:
        raise CommandFailed(unreachable(str(client.base_url), error)) from error
    if response.status_code != 200:
        await response.aread()
        await response.aclose()
        raise _refusal(response.status_code, _json(response.content))
    return Streamed(
        response.headers.get(REQUEST_ID, ""),
        response.headers.get("idempotent-replayed", "") == "true",
        response,
    )


async def served_models(client: httpx.AsyncClient) -> list[str]:
    """The names of the models, as the API lists them. Raises CommandFailed."""
    try:
        response = await client.get("/v1/models")
    except httpx.HTTPError as error:
        raise CommandFailed(unreachable(str(client.base_url), error)) from error
    body = _json(response.content)
    if response.status_code != 200:
        raise _refusal(response.status_code, body)
    return [str(model["id"]) for model in body.get("data", [])]


async def choose_model(client: httpx.AsyncClient, wanted: str | None) -> str:
    """The wanted model, else the first one served. Raises CommandFailed."""
    if wanted is not None:
        return wanted
    models = await served_models(client)
    if not models:
        raise CommandFailed(
            "no worker has announced a model yet. Is one running? See inferlog status"
        )
    return models[0]


def unreachable(url: str, error: Exception) -> str:
    """What to say when there is no answer at all."""
    kind = type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"nobody answers at {url} ({kind}). Is the API running there? See inferlog status"
    return f"no answer from {url} ({kind})"


def _json(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(status: int, body: Mapping[str, Any]) -> Refused:
    error = body.get("error")
    error = error if isinstance(error, dict) else {}
    message = str(error.get("message") or f"the API answered {status}")
    if status == 401:
        message += " Set INFERLOG_API_KEY to one of its keys."
    return Refused(status, str(error.get("code") or "unknown"), message)


def _chunk(body: Mapping[str, Any], position: int | None, at_s: float) -> Chunk:
    choices: Iterable[Mapping[str, Any]] = body.get("choices") or ()
    text, reason = "", None
    for choice in choices:
        delta = choice.get("delta")
        text += (delta.get("content") if isinstance(delta, dict) else choice.get("text")) or ""
        reason = choice.get("finish_reason") or reason
    return Chunk(text, position, reason, body.get("usage"), at_s)
