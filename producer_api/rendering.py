"""Visible events as OpenAI's bodies and chunks. Pure: events in, bytes and objects out."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import orjson

from core.errors import Refusal
from core.stream import Visible, is_terminal
from producer_api.error_responses import error_object, refusal_of
from producer_api.parameters import NAMES_BY_TIER
from producer_api.response_rendering import (
    ResponseRenderer,
    response_object,
    status_of,
    text_of,
)
from schemas.ids import parse_request_id
from schemas.replies import Accepted, Finished, Started, TokenLogprob, Tokens, TokenUsage
from schemas.requests import CHAT, COMPLETIONS, RESPONSES, RequestInfo

DONE = b"data: [DONE]\n\n"
_PREFIXES: Mapping[str, str] = {CHAT: "chatcmpl-", COMPLETIONS: "cmpl-", RESPONSES: "resp_"}
_MARK = "\0"
"""Stands where the text will: nothing behind it in a chunk could be taken for it."""


class Renderer(Protocol):
    """Events in, server-sent events out. `position` is the id that a client goes on from."""

    position: int

    def render(self, events: Iterable[Visible]) -> bytes: ...
    def failure(self, refusal: Refusal) -> bytes: ...


def public_id(request_id: str, endpoint: str) -> str:
    """`chatcmpl-…`, `cmpl-…` or `resp_…`."""
    return f"{_PREFIXES[endpoint]}{request_id}"


def frame(payload: object, position: int | None = None) -> bytes:
    """One SSE event; all data is JSON, so that no newline can break out of it."""
    head = b"" if position is None else b"id: %d\n" % position
    return head + b"data: " + orjson.dumps(payload) + b"\n\n"


def _piece(position: int, around: tuple[bytes, bytes], text: str) -> bytes:
    before, behind = around
    return b"id: %d\n%b%b%b" % (position, before, orjson.dumps(text), behind)


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _token_logprob(it: TokenLogprob) -> dict[str, Any]:
    return {"token": it.token, "logprob": it.logprob, "bytes": list(it.token.encode())}


def chat_logprobs(items: Iterable[TokenLogprob] | None) -> dict[str, Any] | None:
    """OpenAI's chat form."""
    if items is None:
        return None
    content = [
        {
            **_token_logprob(it),
            "top_logprobs": [
                {"token": text, "logprob": value, "bytes": list(text.encode())}
                for text, value in it.top
            ],
        }
        for it in items
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(items: Iterable[TokenLogprob] | None) -> dict[str, Any] | None:
    """OpenAI's older form."""
    if items is None:
        return None
    items = list(items)
    offsets, offset = [], 0
    for it in items:
        offsets.append(offset)
        offset += len(it.token)
    return {
        "tokens": [it.token for it in items],
        "token_logprobs": [it.logprob for it in items],
        "top_logprobs": [dict(it.top) for it in items],
        "text_offset": offsets,
    }


class ChunkRenderer:
    """The chunks of one stream, from the beginning of its answer on.

    It is given every event of the answer; those up to the position `after` are not shown. A position
    inside an event, which no stream ever told, stands for the event's beginning: its text cannot be
    cut, and nothing is lost. `position` counts the tokens of all choices passed over or shown.
    """

    __slots__ = ("_after", "_around", "_chat", "_head", "_info", "_roles", "position")

    def __init__(self, request_id: str, info: RequestInfo, after: int = 0) -> None:
        self.position = 0
        self._chat = info.endpoint == CHAT
        self._info = info
        self._after = after
        self._roles: set[int] = set()
        self._around: dict[int, tuple[bytes, bytes]] = {}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": public_id(request_id, info.endpoint),
            "object": kind,
            "created": parse_request_id(request_id).time_ms // 1000,
            "model": info.model,
            "service_tier": NAMES_BY_TIER[info.tier],
            "system_fingerprint": None,
        }

    def render(self, events: Iterable[Visible]) -> bytes:
        """All frames for these events, to be written at once, with the end of the answer."""
        frames: list[bytes] = []
        for event in events:
            if type(event) is Tokens:
                self._tokens(event, frames)
            elif isinstance(event, Finished):
                if self._info.include_usage:
                    chunk = {**self._head, "choices": [], "usage": usage_object(event.usage)}
                    frames.append(frame(chunk, self.position))
                frames.append(DONE)
            elif is_terminal(event):
                refusal = refusal_of(event)  # type: ignore[arg-type]  # just checked
                assert refusal is not None
                frames.append(self.failure(refusal))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def failure(self, refusal: Refusal) -> bytes:
        """The request's own error, or one of this replica; the end of the stream."""
        return frame(error_object(refusal), self.position)

    def _tokens(self, event: Tokens, frames: list[bytes]) -> None:
        ends_at, choice = self.position + len(event.token_ids), event.choice
        around = self._around.get(choice)
        if around and event.text and event.logprobs is None and event.finish_reason is None:
            # as most are: plain, behind others of its choice that were shown
            self.position = ends_at
            frames.append(_piece(ends_at, around, event.text))
            return
        if ends_at < self._after:
            self.position = ends_at
            self._roles.add(choice)
            return
        if choice not in self._roles:
            self._roles.add(choice)
            if self._chat and self.position >= self._after:
                delta = {"role": "assistant", "content": ""}
                # the same position as before: nothing of the answer is in it
                frames.append(frame(self._chunk(choice, delta, None, None), self.position))
        self.position = ends_at
        if event.token_ids and ends_at == self._after:
            pass  # it was the last one told
        elif event.text and event.logprobs is None:
            frames.append(_piece(ends_at, around or self._cut(choice), event.text))
        elif event.text or event.logprobs:
            frames.append(frame(self._with_logprobs(event), self.position))
        # the end of a choice lies at its last token's position: it is told again from there on
        if event.finish_reason is not None:
            final: Any = {} if self._chat else ""
            chunk = self._chunk(event.choice, final, event.finish_reason, None)
            frames.append(frame(chunk, self.position))

    def _cut(self, choice: int) -> tuple[bytes, bytes]:
        """What stands around the text in every plain piece of a choice: only the text differs."""
        content: Any = {"content": _MARK} if self._chat else _MARK
        whole = frame(self._chunk(choice, content, None, None))
        before, _, behind = whole.rpartition(orjson.dumps(_MARK))
        self._around[choice] = before, behind
        return before, behind

    def _with_logprobs(self, event: Tokens) -> dict[str, Any]:
        if self._chat:
            logprobs = chat_logprobs(event.logprobs)
            return self._chunk(event.choice, {"content": event.text}, None, logprobs)
        return self._chunk(event.choice, event.text, None, completion_logprobs(event.logprobs))

    def _chunk(
        self, choice: int, content: Any, reason: str | None, logprobs: Any
    ) -> dict[str, Any]:
        name = "delta" if self._chat else "text"
        it = {"index": choice, name: content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [it]}


def renderer_of(request_id: str, info: RequestInfo, after: int | None = None) -> Renderer:
    """The stream of a request in its endpoint's own form, from behind the event id `after` on."""
    if info.endpoint == RESPONSES:
        return ResponseRenderer(request_id, info, -1 if after is None else after)
    return ChunkRenderer(request_id, info, after or 0)


def whole_body(request_id: str, events: list[Visible]) -> dict[str, Any]:
    """The answer as one body. `events` are all visible ones, the last of them Finished."""
    info: RequestInfo | None = None
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    finished: Finished | None = None
    for event in events:
        if isinstance(event, Accepted | Started):
            info = info or event.info
        elif isinstance(event, Tokens):
            texts.setdefault(event.choice, []).append(event.text)
            if event.logprobs is not None:
                logprobs.setdefault(event.choice, []).extend(event.logprobs)
        elif isinstance(event, Finished):
            finished = event
    if info is None or finished is None:
        raise ValueError("an answer has a beginning and a Finished")
    if info.endpoint == RESPONSES:
        return response_object(request_id, info, status_of(finished), text_of(events), finished)
    chat = info.endpoint == CHAT
    choices: list[dict[str, Any]] = []
    for index, reason in enumerate(finished.finish_reasons):
        text = "".join(texts.get(index, ()))
        if chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            entry = {"index": index, "message": message}
            entry["logprobs"] = chat_logprobs(logprobs.get(index))
        else:
            entry = {"index": index, "text": text}
            entry["logprobs"] = completion_logprobs(logprobs.get(index))
        choices.append({**entry, "finish_reason": reason})
    return {
        "id": public_id(request_id, info.endpoint),
        "object": "chat.completion" if chat else "text_completion",
        "created": parse_request_id(request_id).time_ms // 1000,
        "model": info.model,
        "service_tier": NAMES_BY_TIER[info.tier],
        "system_fingerprint": None,
        "choices": choices,
        "usage": usage_object(finished.usage),
    }
