"""What clients write down for the history checker: each call, and what its connection showed."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from inferlog.api_client import sse_events
from schemas.ids import parse_request_id
from tests.checker.history import Action, Attempt, Seen

STREAM_ENDS = {
    "cancelled": "cancelled",
    "deadline_exceeded": "expired",
    "poison": "failed",
    "engine_failed": "failed",
    "interrupted": "failed",
    "undecodable": "failed",
}
"""Which terminal a code is told for; other codes are of the replica, not of the request."""


def wall_ms() -> int:
    """This machine's clock, which is the brokers' too."""
    return int(time.time() * 1000)


class Notes:
    """One client's attempts, put into the list that all clients share."""

    def __init__(self, attempts: list[Attempt], client: str, tenant: str, key: str | None) -> None:
        self._attempts = attempts
        self._client = client
        self._tenant = tenant
        self._key = key

    @contextmanager
    def attempt(
        self, action: Action, replica: str, request_id: str | None = None
    ) -> Iterator[Attempt]:
        """One call: over when the body is, `unknown` unless the body said what came of it."""
        it = Attempt(
            len(self._attempts),
            self._client,
            action,
            self._tenant,
            replica,
            wall_ms(),
            key=self._key if action == "submit" else None,
            request_id=request_id,
        )
        self._attempts.append(it)
        try:
            yield it
        except httpx.HTTPError:
            if it.done_ms is None:
                it.code = "connection"
            raise
        finally:
            if it.done_ms is None:
                it.done_ms = wall_ms()


def accepted(it: Attempt, request_id: str | None, answer: httpx.Response) -> None:
    """The status line said yes."""
    it.request_id = request_id
    it.result = "ok"
    it.outcome = "replayed" if answer.headers.get("idempotent-replayed") else "new"
    it.done_ms = wall_ms()


def refused(it: Attempt, code: str) -> None:
    """The status line said no, or that it does not know."""
    it.result = "unknown" if code == "outcome_unknown" else "refused"
    it.code = code
    it.done_ms = wall_ms()


def told(it: Attempt, answer: httpx.Response) -> None:
    """The answer to a question about a request, or to a cancel."""
    if answer.status_code == 200:
        it.result, it.state = "ok", answer.json()["status"]
    else:
        refused(it, answer.json()["error"]["code"])


def saw_whole(it: Attempt, body: dict[str, Any]) -> None:
    """The whole answer in one body."""
    tokens = body["usage"]["completion_tokens"]
    it.seen = Seen(position=tokens, text=body["choices"][0]["text"], terminal="finished")


def saw_error(seen: Seen, code: str) -> None:
    """An error came instead of the next token."""
    seen.terminal, seen.code = STREAM_ENDS.get(code), code


def request_id_of(answer: httpx.Response) -> str | None:
    """The id of what runs; an answer about nothing that was accepted carries a random one."""
    name = answer.headers.get("x-request-id", "")
    try:
        parse_request_id(name)
    except ValueError:
        return None
    return str(name)


async def events(answer: httpx.Response) -> AsyncIterator[tuple[int, str]]:
    """Position and data of each event of a stream."""
    async for event_id, data in sse_events(answer.aiter_lines()):
        yield int(event_id or 0), data
