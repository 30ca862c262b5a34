"""From visible events to OpenAI's chunks and bodies. Pure: the same events give the same answer.

A position is the number of the request's tokens, of all its choices, up to and including a chunk, so
it is the same on every replica, however events were merged on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import ERRORS, Refusal
from core.stream import Visible
from schemas.ids import parse_request_id
from schemas.replies import (
    AnyTerminal,
    Cancelled,
    Expired,
    Failed,
    Finished,
    TokenLogprob,
    Tokens,
    TokenUsage,
)
from schemas.requests import CHAT, RequestInfo

from producer_api.conversion import SERVICE_TIER_OF

LOGPROB_MIN = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

_EXPIRED = {
    "start": "The request was not started in time: all workers are busy. Retry later.",
    "first_token": "The worker gave no token in time. Retry later.",
    "total": "The request's total deadline passed before its answer was complete.",
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream: its position, and its payload."""

    position: int
    payload: Json


def public_id(request_id: str, info: RequestInfo) -> str:
    """The id as OpenAI's routes show it."""
    return ("chatcmpl-" if info.endpoint == CHAT else "cmpl-") + request_id


def failure_of(terminal: AnyTerminal) -> Refusal | None:
    """What a terminal means to its client; None if the answer is complete."""
    if isinstance(terminal, Failed):
        error = terminal.error
        code = error.code if error.code in ERRORS else "internal_error"
        return Refusal(code, error.message, param=error.param)
    if isinstance(terminal, Cancelled):
        return Refusal("cancelled", "The request was cancelled.")
    if isinstance(terminal, Expired):
        return Refusal("deadline_exceeded", _EXPIRED[terminal.deadline])
    return None


def usage_json(usage: TokenUsage) -> Json:
    """Token counts in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _shape(request_id: str, info: RequestInfo, chat_object: str, completion_object: str) -> Json:
    return {
        "id": public_id(request_id, info),
        "object": chat_object if info.endpoint == CHAT else completion_object,
        "created": parse_request_id(request_id).time_ms // 1000,
        "model": info.model,
        "service_tier": SERVICE_TIER_OF[info.tier],
        "system_fingerprint": None,
    }


# --- log probabilities


def _number(logprob: float) -> float:
    return max(logprob, LOGPROB_MIN)


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    return {"content": [_chat_token(it) for it in logprobs], "refusal": None}


def _chat_token(it: TokenLogprob) -> Json:
    return {
        "token": it.token,
        "logprob": _number(it.logprob),
        "bytes": list(it.token.encode(errors="replace")),
        "top_logprobs": [
            {
                "token": token,
                "logprob": _number(logprob),
                "bytes": list(token.encode(errors="replace")),
            }
            for token, logprob in it.top
        ],
    }


def _completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> Json:
    offsets = []
    for it in logprobs:
        offsets.append(offset)
        offset += len(it.token)
    return {
        "tokens": [it.token for it in logprobs],
        "token_logprobs": [_number(it.logprob) for it in logprobs],
        "top_logprobs": [{token: _number(value) for token, value in it.top} for it in logprobs],
        "text_offset": offsets,
    }


# --- streams


class ChunkRenderer:
    """Turns batches of events into chunks. `failure` and `ended` are set by the terminal.

    `after` is the position the client already has. With `include_usage`, a chunk with the counts
    follows the last one.
    """

    def __init__(
        self, request_id: str, info: RequestInfo, *, include_usage: bool, after: int = 0
    ) -> None:
        self.failure: Refusal | None = None
        self.ended = False
        self._after = after
        self._chat = info.endpoint == CHAT
        self._include_usage = include_usage
        self._base = _shape(request_id, info, "chat.completion.chunk", "text_completion")
        if include_usage:
            self._base["usage"] = None
        self._roles = set() if after or not self._chat else set(range(info.n))
        self._offsets: dict[int, int] = {}

    def render(self, events: Sequence[Visible], position: int) -> list[Chunk]:
        """The chunks of a batch that ends at `position`; neighbours of one choice are merged.

        An event that the client has up to its last token is left out; one of which it has a part is
        given whole (positions that were handed out never split an event).
        """
        chunks: list[Chunk] = []
        run: list[Tokens] = []
        seen = position - sum(len(it.token_ids) for it in events if isinstance(it, Tokens))
        for event in events:
            if isinstance(event, Tokens):
                if run and run[0].choice != event.choice:
                    self._flush(run, seen, chunks)
                seen += len(event.token_ids)
                if event.token_ids and seen <= self._after:
                    continue
                run.append(event)
            elif isinstance(event, Finished | Failed | Cancelled | Expired):
                self._flush(run, seen, chunks)
                self.ended = True
                self.failure = failure_of(event)
                if isinstance(event, Finished) and self._include_usage:
                    usage = usage_json(event.usage)
                    chunks.append(Chunk(seen, {**self._base, "choices": [], "usage": usage}))
        self._flush(run, seen, chunks)
        return chunks

    def _flush(self, run: list[Tokens], position: int, chunks: list[Chunk]) -> None:
        """One chunk for a run of events of one choice."""
        if not run:
            return
        first, last = run[0], run[-1]
        text = first.text if len(run) == 1 else "".join([it.text for it in run])
        logprobs: Sequence[TokenLogprob] | None = first.logprobs
        if len(run) > 1 and logprobs is not None:
            logprobs = [one for it in run for one in it.logprobs or ()]
        run.clear()
        if not text and not logprobs and last.finish_reason is None:
            return  # its text is withheld for now
        index = first.choice
        if index in self._roles:
            self._roles.discard(index)
            delta = {"role": "assistant", "content": "", "refusal": None}
            chunks.append(self._chunk(0, index, {"delta": delta}, None, None))
        if self._chat:
            choice: Json = {"delta": {"content": text} if text else {}}
            shown = None if logprobs is None else _chat_logprobs(logprobs)
        else:
            choice = {"text": text}
            shown = None if logprobs is None else self._text_logprobs(index, logprobs)
        chunks.append(self._chunk(position, index, choice, shown, last.finish_reason))

    def _text_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> Json:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(it.token) for it in logprobs)
        return _completion_logprobs(logprobs, offset)

    def _chunk(
        self, position: int, index: int, choice: Json, logprobs: Json | None, finish: str | None
    ) -> Chunk:
        choice = {"index": index, **choice, "logprobs": logprobs, "finish_reason": finish}
        return Chunk(position, {**self._base, "choices": [choice]})


# --- whole answers


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    has_logprobs: bool = False
    finish_reason: str | None = None


class BodyRenderer:
    """Gathers events until the terminal; then `failure`, or `body()`."""

    def __init__(self, request_id: str, info: RequestInfo) -> None:
        self.terminal: AnyTerminal | None = None
        self._request_id = request_id
        self._info = info
        self._choices = [_Choice() for _ in range(info.n)]

    @property
    def ended(self) -> bool:
        """True once the terminal was fed."""
        return self.terminal is not None

    @property
    def failure(self) -> Refusal | None:
        """Why there is no body."""
        return None if self.terminal is None else failure_of(self.terminal)

    def feed(self, events: Sequence[Visible]) -> None:
        """Takes the next events."""
        for event in events:
            if isinstance(event, Tokens):
                while len(self._choices) <= event.choice:
                    self._choices.append(_Choice())
                choice = self._choices[event.choice]
                choice.texts.append(event.text)
                if event.logprobs is not None:
                    choice.has_logprobs = True
                    choice.logprobs += event.logprobs
                choice.finish_reason = event.finish_reason or choice.finish_reason
            elif isinstance(event, Finished | Failed | Cancelled | Expired):
                self.terminal = event

    def body(self) -> Json:
        """The endpoint's own body. Only after `Finished`."""
        assert isinstance(self.terminal, Finished)
        body = _shape(self._request_id, self._info, "chat.completion", "text_completion")
        body["choices"] = [
            self._choice(index, it, self.terminal.finish_reasons)
            for index, it in enumerate(self._choices)
        ]
        body["usage"] = usage_json(self.terminal.usage)
        return body

    def _choice(self, index: int, it: _Choice, reasons: Sequence[str]) -> Json:
        text = "".join(it.texts)
        finish = reasons[index] if index < len(reasons) else it.finish_reason
        if self._info.endpoint == CHAT:
            return {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": _chat_logprobs(it.logprobs) if it.has_logprobs else None,
                "finish_reason": finish,
            }
        return {
            "index": index,
            "text": text,
            "logprobs": _completion_logprobs(it.logprobs, 0) if it.has_logprobs else None,
            "finish_reason": finish,
        }
