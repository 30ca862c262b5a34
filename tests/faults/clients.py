"""Clients that stream, wait, come back and cancel, and write down what they saw."""

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tests.checker.history import Attempt, Seen
from tests.checker.topics_read import TopicsRead
from tests.faults.attempts import (
    Notes,
    accepted,
    events,
    refused,
    request_id_of,
    saw_error,
    saw_whole,
    told,
)
from tests.faults.operation import KINDS, NOTHING_APPENDED, Kind, Operation

COMPLETIONS = "/v1/completions"
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.2


class _Again(Exception):
    """The answer broke off: go on from the position, at another replica."""


class Clients:
    """An open-loop workload against all replicas.

    `history` has every operation, `attempts` every call that was made for one, `read` what lay on
    the log when all was over, `wrong` what the checker said of it.
    """

    def __init__(
        self,
        replicas: Sequence[str],
        key: str,
        *,
        seed: int,
        kinds: Sequence[Kind] = KINDS,
        max_tokens: tuple[int, int] = (8, 80),
        tenant: str = "default",
        model: str = "scripted",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.history: list[Operation] = []
        self.attempts: list[Attempt] = []
        self.read: TopicsRead | None = None
        self.wrong: list[str] = []
        self.streams_go_to: str | None = None
        """The replica that new streams are asked of; they are resumed at any."""
        self.key = key
        self.model = model
        self._parameters = dict(parameters or {})
        self._tenant = tenant
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

    async def reading(self, count: int, seconds: float = 30.0) -> list[Operation]:
        """Waits until so many have begun to read their answers and not ended; returns those."""
        async with asyncio.timeout(seconds):
            while True:
                found = [it for it in self.history if it.position and not it.ended_s]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)

    async def one(self, kind: Kind | None = None, prompt: str | None = None) -> Operation:
        """One operation to its end; without a kind or a prompt, of any kind and one of its own."""
        number = next(self._numbers)
        chosen = self._random.choice(self._kinds) if kind is None else kind
        operation = Operation(
            number=number,
            kind=chosen,
            prompt=prompt or f"{self._run} request {number}",
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
        asked = {"model": self.model, "prompt": it.prompt, "max_tokens": it.max_tokens}
        return {**asked, **self._parameters, **more}

    async def pry(self, key: str, tenant: str) -> None:
        """Another tenant asks for some of these requests, and tries to cancel them."""
        known = [it.request_id for it in self.history if it.request_id is not None]
        headers = {"Authorization": f"Bearer {key}"}
        notes = Notes(self.attempts, "prying", tenant, None)
        for name in self._random.sample(known, min(3, len(known))):
            replica = self._replica()
            url = f"{replica}/v1/requests/{name}"
            with notes.attempt("status", replica, name) as attempt:
                told(attempt, await self._http.get(url, headers=headers))
            with notes.attempt("cancel", replica, name) as attempt:
                told(attempt, await self._http.post(f"{url}/cancel", headers=headers))

    def _notes(self, it: Operation) -> Notes:
        return Notes(self.attempts, f"client-{it.number}", self._tenant, it.key)

    # --- the kinds

    async def _submit(self, it: Operation, url: str, payload: dict[str, Any]) -> dict[str, Any]:
        """POSTs once, for the whole answer or for an id; {} if there is neither."""
        replica = self._replica()
        with self._notes(it).attempt("submit", replica) as attempt:
            try:
                answer = await self._http.post(replica + url, json=payload)
            except httpx.ConnectError:
                _failed(it, "unreachable")
                raise
            it.request_id = request_id_of(answer)
            body: dict[str, Any] = answer.json()
            if answer.status_code not in (200, 202):
                _refused(it, body, attempt)
                return {}
            accepted(attempt, it.request_id, answer)
            if answer.status_code == 200:
                saw_whole(attempt, body)
            return body

    async def _whole(self, it: Operation) -> None:
        with contextlib.suppress(httpx.HTTPError):  # nobody told its id: unknown
            if body := await self._submit(it, COMPLETIONS, self._body(it)):
                it.text = body["choices"][0]["text"]
                it.outcome = "ok"

    async def _background(self, it: Operation) -> None:
        payload = {"endpoint": COMPLETIONS, "body": self._body(it)}
        with contextlib.suppress(httpx.HTTPError):
            if await self._submit(it, "/v1/requests", payload):
                while it.outcome == "unknown" and it.error is None:
                    await asyncio.sleep(PAUSE_SECONDS)
                    with contextlib.suppress(httpx.HTTPError):
                        await self._ask(it)

    async def _ask(self, it: Operation) -> None:
        replica = self._replica()
        with self._notes(it).attempt("status", replica, it.request_id) as attempt:
            answer = await self._http.get(f"{replica}/v1/requests/{it.request_id}")
            found = answer.json()
            if answer.status_code != 200:
                refused(attempt, found["error"]["code"])
                if answer.status_code != 503:
                    _refused(it, found)
                return
            attempt.result, attempt.state = "ok", found["status"]
            if found["status"] == "completed":
                saw_whole(attempt, found["response"])
                it.text = found["response"]["choices"][0]["text"]
                it.outcome = "ok"
            elif found["status"] not in ("queued", "in_progress"):
                _failed(it, found["status"])

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
            with contextlib.suppress(_Again, httpx.HTTPError):
                await self._resume_once(it)
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _resume_once(self, it: Operation) -> None:
        replica = self._replica()
        url = f"{replica}/v1/requests/{it.request_id}/stream"
        headers = {"Last-Event-ID": str(it.position)} if it.position else {}
        with self._notes(it).attempt("resume", replica, it.request_id) as attempt:
            async with self._http.stream("GET", url, headers=headers) as answer:
                if answer.status_code == 200:
                    accepted(attempt, it.request_id, answer)
                    await self._read(it, answer, attempt)
                    return
                refusal = json.loads(await answer.aread())
                refused(attempt, refusal["error"]["code"])
                if answer.status_code == 503:
                    raise _Again
                _refused(it, refusal)

    async def _post_stream(self, it: Operation, headers: dict[str, str]) -> None:
        replica = self.streams_go_to or self._replica()
        body = self._body(it, stream=True)
        with self._notes(it).attempt("submit", replica) as attempt:
            post = self._http.stream("POST", replica + COMPLETIONS, json=body, headers=headers)
            async with post as answer:
                it.request_id = request_id_of(answer) or it.request_id
                if answer.status_code == 200:
                    accepted(attempt, it.request_id, answer)
                    await self._read(it, answer, attempt)
                    return
                refusal = json.loads(await answer.aread())
                refused(attempt, refusal["error"]["code"])
                if it.key is not None and answer.status_code in (409, 503):
                    raise _Again
                _refused(it, refusal)

    async def _read(self, it: Operation, answer: httpx.Response, attempt: Attempt) -> None:
        leave_at = it.max_tokens // 2 if it.kind in ("cancelled", "closed") else None
        attempt.seen = seen = Seen(after=it.position, position=it.position, text="")
        it.heard_s = it.heard_s or time.monotonic()
        async for position, data in events(answer):
            now_s = time.monotonic()
            it.longest_pause_s = max(it.longest_pause_s, now_s - it.heard_s)
            it.heard_s = now_s
            if data == "[DONE]":
                it.outcome, seen.terminal = "ok", "finished"
                return
            body = json.loads(data)
            if "error" in body:
                saw_error(seen, body["error"]["code"])
                if body["error"]["code"] in NOTHING_APPENDED:
                    raise _Again  # this replica cannot go on; another can
                if body["error"]["code"] == "cancelled" and it.kind == "cancelled":
                    it.outcome = "ok"
                    return
                _failed(it, body["error"]["code"])
                return
            text = "".join(choice["text"] for choice in body["choices"])
            it.text, it.position = it.text + text, position
            seen.text, seen.position = f"{seen.text}{text}", position
            if leave_at is not None and position >= leave_at:
                if it.kind == "closed":
                    it.outcome = "ok"
                    return
                leave_at = None
                await self.cancel(it)
        raise _Again

    async def cancel(self, it: Operation) -> None:
        """Asks any replica for an end."""
        replica = self._replica()
        with (
            contextlib.suppress(httpx.HTTPError),  # then it runs to its end, which is as good
            self._notes(it).attempt("cancel", replica, it.request_id) as attempt,
        ):
            url = f"{replica}/v1/requests/{it.request_id}/cancel"
            told(attempt, await self._http.post(url))


def _failed(it: Operation, error: str) -> None:
    it.outcome, it.error = "failed", error


def _refused(it: Operation, body: dict[str, Any], attempt: Attempt | None = None) -> None:
    code = str(body["error"]["code"])
    if attempt is not None:
        refused(attempt, code)
    it.error = code
    it.outcome = "unknown" if code == "outcome_unknown" else "failed"
