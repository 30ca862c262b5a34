"""Visible events as OpenAI's bodies and chunks. Pure: events in, bytes and objects out."""

from collections.abc import Iterable
from typing import Any

import orjson

from core.stream import Visible
from producer_api.parameters import NAMES_BY_TIER
from schemas.ids import parse_request_id
from schemas.replies import Accepted, Finished, Started, TokenLogprob, Tokens, TokenUsage
from schemas.requests import CHAT, RequestInfo

DONE = b"data: [DONE]\n\n"
_MARK = "\0"
"""Stands where the text will: nothing behind it in a chunk could be taken for it."""


def public_id(request_id: str, endpoint: str) -> str:
    """`chatcmpl-…` or `cmpl-…`."""
    return f"{'chatcmpl' if endpoint == CHAT else 'cmpl'}-{request_id}"


def frame(payload: object, position: int | None = None) -> bytes:
    """One SSE event; all data is JSON, so that no newline can break out of it."""
    head = b"" if position is None else b"id: %d\n" % position
    return head + b"data: " + orjson.dumps(payload) + b"\n\n"


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
    """The chunks of one stream. `position` counts the tokens of all choices rendered or skipped."""

    def __init__(self, request_id: str, info: RequestInfo, after: int = 0) -> None:
        self.position = after
        self._chat = info.endpoint == CHAT
        self._info = info
        self._resumed = after > 0
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
        """All frames for these events, to be written at once. Terminals that are errors are not ours."""
        frames: list[bytes] = []
        for event in events:
            if isinstance(event, Tokens):
                self._tokens(event, frames)
            elif isinstance(event, Finished):
                if self._info.include_usage:
                    chunk = {**self._head, "choices": [], "usage": usage_object(event.usage)}
                    frames.append(frame(chunk, self.position))
                frames.append(DONE)
        return b"".join(frames)

    def _tokens(self, event: Tokens, frames: list[bytes]) -> None:
        if self._chat and event.choice not in self._roles and not self._resumed:
            self._roles.add(event.choice)
            delta = {"role": "assistant", "content": ""}
            # the same position as before: nothing of the answer is in it
            frames.append(frame(self._chunk(event.choice, delta, None, None), self.position))
        self.position += len(event.token_ids)
        if event.text and event.logprobs is None:
            before, behind = self._around.get(event.choice) or self._cut(event.choice)
            text = orjson.dumps(event.text)
            frames.append(b"id: %d\n%b%b%b" % (self.position, before, text, behind))
        elif event.text or event.logprobs:
            frames.append(frame(self._piece(event), self.position))
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

    def _piece(self, event: Tokens) -> dict[str, Any]:
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


def whole_body(request_id: str, events: Iterable[Visible]) -> dict[str, Any]:
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
