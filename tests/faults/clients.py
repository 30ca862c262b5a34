"""Clients that stream, wait, come back and cancel, and write down what they saw."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from inferlog.api_client import sse_events
from schemas.ids import parse_request_id

Kind = Literal["stream", "whole", "background", "keyed", "cancelled", "closed"]
KINDS: tuple[Kind, ...] = ("stream", "whole", "background", "keyed", "cancelled", "closed")

COMPLETIONS = "/v1/completions"
NOTHING_APPENDED = {"unavailable", "shutting_down", "no_worker", "too_many_streams"}
"""Refusals that promise that nothing runs."""
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.2


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request as its client saw it. Times are of `time.monotonic`.

    `outcome`: ok (the whole answer was read), failed (a documented refusal or error: `error`),
    unknown (the connection broke before an id was told, or the API said so itself).
    """

    number: int
    kind: Kind
    prompt: str
    max_tokens: int
    key: str | None = None
    request_id: str | None = None
    text: str = ""
    position: int = 0
    outcome: Literal["ok", "failed", "unknown"] = "unknown"
    error: str | None = None
    resumes: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    longest_pause_s: float = 0.0

    def expected(self) -> str:
        """The whole answer."""
        return scripted_answer(self.prompt, self.max_tokens)


def scripted_answer(prompt: str, max_tokens: int) -> str:
    """What the scripted engine answers."""
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{index} " for index in range(max_tokens))


class _Again(Exception):
    """The answer broke off: go on from the position, at another replica."""


class Clients:
    """An open-loop workload against all replicas; `history` has every operation."""

    def __init__(
        self,
        replicas: Sequence[str],
        key: str,
        *,
        seed: int,
        kinds: Sequence[Kind] = KINDS,
        max_tokens: tuple[int, int] = (8, 80),
    ) -> None:
        self.history: list[Operation] = []
        self._replicas = list(replicas)
        self._random = random.Random(seed)
        self._kinds = kinds
        self._max_tokens = max_tokens
        self._numbers = itertools.count()
        self._run = secrets.token_hex(3)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(60.0, connect=2.0, pool=None),
            limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100),
            trust_env=False,
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def run(self, requests: int, per_second: float) -> None:
        """Sends that many, whether or not earlier ones are done; returns when all have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(self.one())
                await asyncio.sleep(self._random.expovariate(per_second))

    async def one(self, kind: Kind | None = None) -> Operation:
        """One operation to its end."""
        number = next(self._numbers)
        chosen = self._random.choice(self._kinds) if kind is None else kind
        operation = Operation(
            number=number,
            kind=chosen,
            prompt=f"{self._run} request {number}",
            max_tokens=self._random.randint(*self._max_tokens),
            key=f"{self._run}-{number}" if chosen == "keyed" else None,
            began_s=time.monotonic(),
        )
        self.history.append(operation)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._perform(operation)
        except TimeoutError:
            operation.outcome, operation.error = "failed", "hang"
        operation.ended_s = time.monotonic()
        return operation

    def _replica(self) -> str:
        return self._random.choice(self._replicas)

    async def _perform(self, it: Operation) -> None:
        if it.kind == "background":
            await self._background(it)
        elif it.kind == "whole":
            await self._whole(it)
        else:
            await self._streamed(it)

    def _body(self, it: Operation, **more: Any) -> dict[str, Any]:
        return {"model": "scripted", "prompt": it.prompt, "max_tokens": it.max_tokens, **more}

    # --- the kinds

    async def _whole(self, it: Operation) -> None:
        try:
            answer = await self._http.post(self._replica() + COMPLETIONS, json=self._body(it))
        except httpx.ConnectError:
            _failed(it, "unreachable")
            return
        except httpx.HTTPError:
            return  # nobody told its id: unknown
        it.request_id = _request_id(answer)
        if answer.status_code != 200:
            _refused(it, answer.json())
            return
        it.text = answer.json()["choices"][0]["text"]
        it.outcome = "ok"

    async def _background(self, it: Operation) -> None:
        payload = {"endpoint": COMPLETIONS, "body": self._body(it)}
        try:
            answer = await self._http.post(self._replica() + "/v1/requests", json=payload)
        except httpx.ConnectError:
            _failed(it, "unreachable")
            return
        except httpx.HTTPError:
            return
        if answer.status_code != 202:
            _refused(it, answer.json())
            return
        it.request_id = answer.json()["id"]
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                url = f"{self._replica()}/v1/requests/{it.request_id}"
                status = await self._http.get(url)
            except httpx.HTTPError:
                continue
            if status.status_code == 503:
                continue
            found = status.json()
            if status.status_code != 200:
                _refused(it, found)
                return
            if found["status"] == "completed":
                it.text = found["response"]["choices"][0]["text"]
                it.outcome = "ok"
                return
            if found["status"] not in ("queued", "in_progress"):
                _failed(it, found["status"])
                return

    async def _streamed(self, it: Operation) -> None:
        """First the POST; then, whatever breaks off is resumed anywhere."""
        headers = {"Prefer": "inferlog=resumable"} if it.kind == "stream" else {}
        if it.key is not None:
            headers = {"Idempotency-Key": it.key, "Prefer": "inferlog=attach"}
        while True:
            try:
                await self._post_stream(it, headers)
                return
            except _Again:
                pass
            except httpx.HTTPError as error:
                if it.key is None and it.request_id is None:
                    if isinstance(error, httpx.ConnectError):
                        _failed(it, "unreachable")
                    return
            if it.key is None:
                break
            # with a key the POST itself is the way back: the same answer, from its beginning
            it.text, it.position = "", 0
            it.resumes += 1
            await asyncio.sleep(PAUSE_SECONDS)
        if it.kind == "stream":
            await self._resume(it)
        # the others were nobody's any more once their connection had closed

    async def _resume(self, it: Operation) -> None:
        while True:
            it.resumes += 1
            url = f"{self._replica()}/v1/requests/{it.request_id}/stream"
            headers = {"Last-Event-ID": str(it.position)} if it.position else {}
            try:
                async with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.status_code == 200:
                        await self._read(it, answer)
                        return
                    if answer.status_code != 503:
                        _refused(it, json.loads(await answer.aread()))
                        return
            except (_Again, httpx.HTTPError):
                pass
            await asyncio.sleep(PAUSE_SECONDS)

    async def _post_stream(self, it: Operation, headers: dict[str, str]) -> None:
        url = self._replica() + COMPLETIONS
        body = self._body(it, stream=True)
        async with self._http.stream("POST", url, json=body, headers=headers) as answer:
            it.request_id = _request_id(answer) or it.request_id
            if answer.status_code == 200:
                await self._read(it, answer)
                return
            refusal = json.loads(await answer.aread())
            if it.key is not None and answer.status_code in (409, 503):
                raise _Again
            _refused(it, refusal)

    async def _read(self, it: Operation, answer: httpx.Response) -> None:
        leave_at = it.max_tokens // 2 if it.kind in ("cancelled", "closed") else None
        last_s = time.monotonic()
        async for position, data in _events(answer):
            now_s = time.monotonic()
            it.longest_pause_s = max(it.longest_pause_s, now_s - last_s)
            last_s = now_s
            if data == "[DONE]":
                it.outcome = "ok"
                return
            body = json.loads(data)
            if "error" in body:
                if body["error"]["code"] in NOTHING_APPENDED:
                    raise _Again  # this replica cannot go on; another can
                if body["error"]["code"] == "cancelled" and it.kind == "cancelled":
                    it.outcome = "ok"
                    return
                _failed(it, body["error"]["code"])
                return
            it.text += "".join(choice["text"] for choice in body["choices"])
            it.position = position
            if leave_at is not None and position >= leave_at:
                if it.kind == "closed":
                    it.outcome = "ok"
                    return
                leave_at = None
                await self._cancel(it)
        raise _Again

    async def _cancel(self, it: Operation) -> None:
        with contextlib.suppress(httpx.HTTPError):  # then it runs to its end, which is as good
            await self._http.post(f"{self._replica()}/v1/requests/{it.request_id}/cancel")


def _request_id(answer: httpx.Response) -> str | None:
    """The id of what runs; an answer about nothing that was accepted carries a random one."""
    name = answer.headers.get("x-request-id", "")
    try:
        parse_request_id(name)
    except ValueError:
        return None
    return str(name)


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[int, str]]:
    async for event_id, data in sse_events(answer.aiter_lines()):
        yield int(event_id or 0), data


def _failed(it: Operation, error: str) -> None:
    it.outcome, it.error = "failed", error


def _refused(it: Operation, body: dict[str, Any]) -> None:
    code = str(body["error"]["code"])
    it.error = code
    it.outcome = "unknown" if code == "outcome_unknown" else "failed"
