"""Visible events as OpenAI's response object and its events. Pure: events in, bytes and objects out.

Sequence numbers are told by the answer alone, never by how its tokens were merged on the way, so
that every replica gives an event the same one: created 0, queued 1, in_progress 2, item added 3,
part added 4; a delta has 4 + the position of its last token; what closes counts on from 4 + all
tokens. They rise, with gaps. They are the ids of the server-sent events as well.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from core.errors import Refusal
from core.stream import Visible, is_terminal
from producer_api.error_responses import refusal_of
from producer_api.parameters import NAMES_BY_TIER
from producer_api.submission import Snapshot
from schemas.ids import parse_request_id
from schemas.replies import Accepted, Cancelled, Finished, Started, Tokens
from schemas.requests import RequestInfo, ResponseEcho

CREATED, QUEUED, IN_PROGRESS, ITEM_ADDED, PART_ADDED = range(5)
FIRST_DELTA_AFTER = PART_ADDED
CLOSING_EVENTS = 4
"""Text done, part done, item done, and the end of the response."""

_INVALID_PROMPT = frozenset(["context_length_exceeded", "invalid_request", "undecodable"])


def last_number(visible: list[Visible]) -> int:
    """The sequence number of the last event that these events amount to; -1 if there is none."""
    number, position = -1, 0
    for event in visible:
        if isinstance(event, Accepted):
            number = max(number, QUEUED)
        elif isinstance(event, Started):
            number = max(number, IN_PROGRESS)
        elif isinstance(event, Tokens):
            position += len(event.token_ids)
            if event.text:
                number = FIRST_DELTA_AFTER + position
            else:
                number = max(number, PART_ADDED)
        elif isinstance(event, Finished):
            number = FIRST_DELTA_AFTER + position + CLOSING_EVENTS
        else:
            number = FIRST_DELTA_AFTER + position + 2
    return number


class ResponseRenderer:
    """The events of one response's stream, from the beginning of its answer on.

    It is given every event of the answer, since what closes repeats the whole text; those up to the
    sequence number `after` are not shown. `position` is the number of the latest event shown, which
    a client goes on from.
    """

    def __init__(self, request_id: str, info: RequestInfo, after: int = -1) -> None:
        self.position = after
        self._id = request_id
        self._info = info
        self._after = after
        self._tokens = 0
        self._text: list[str] = []
        self._begun = -1
        self._item_id = f"msg_{request_id}"

    def render(self, events: Iterable[Visible]) -> bytes:
        """All frames for these events, to be written at once, the end of the response too."""
        frames: list[bytes] = []
        for event in events:
            if isinstance(event, Accepted):
                self._begin(QUEUED, frames)
            elif isinstance(event, Started):
                self._begin(IN_PROGRESS, frames)
            elif isinstance(event, Tokens):
                self._delta(event, frames)
            elif isinstance(event, Finished):
                self._close(event, frames)
            else:
                self._fail(event, frames)
        return b"".join(frames)

    def failure(self, refusal: Refusal) -> bytes:
        """An error that is not the request's own: it runs on, so the number stands where it was."""
        number = max(self.position, 0)
        data = {"type": "error", "sequence_number": number, **_error_fields(refusal)}
        return _frame(number, data) if self.position >= 0 else _frame(None, data)

    def _show(self, number: int, kind: str, frames: list[bytes], **fields: Any) -> None:
        if number <= self._after:
            return
        self.position = number
        frames.append(_frame(number, {"type": kind, "sequence_number": number, **fields}))

    def _begin(self, upto: int, frames: list[bytes]) -> None:
        """What comes before the first delta, as far as it has not come yet."""
        at = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        while self._begun < upto:
            self._begun += 1
            number = self._begun
            if number <= IN_PROGRESS:
                name = ("created", "queued", "in_progress")[number]
                status = "in_progress" if number == IN_PROGRESS else "queued"
                shown = response_object(self._id, self._info, status)
                self._show(number, f"response.{name}", frames, response=shown)
            elif number == ITEM_ADDED:
                item = _message_item(self._id, "in_progress", None)
                self._show(number, "response.output_item.added", frames, output_index=0, item=item)
            else:
                self._show(number, "response.content_part.added", frames, **at, part=_text_part(""))

    def _delta(self, event: Tokens, frames: list[bytes]) -> None:
        self._begin(PART_ADDED, frames)
        self._tokens += len(event.token_ids)
        if not event.text:
            return
        self._text.append(event.text)
        self._show(
            FIRST_DELTA_AFTER + self._tokens,
            "response.output_text.delta",
            frames,
            item_id=self._item_id,
            output_index=0,
            content_index=0,
            delta=event.text,
            logprobs=[],
        )

    def _close(self, end: Finished, frames: list[bytes]) -> None:
        self._begin(PART_ADDED, frames)
        number = FIRST_DELTA_AFTER + self._tokens
        text = "".join(self._text)
        at = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        state = status_of(end)
        shown = response_object(self._id, self._info, state, text, end)
        self._show(number + 1, "response.output_text.done", frames, **at, text=text, logprobs=[])
        self._show(number + 2, "response.content_part.done", frames, **at, part=_text_part(text))
        item = _message_item(self._id, state, text)
        self._show(number + 3, "response.output_item.done", frames, output_index=0, item=item)
        self._show(number + CLOSING_EVENTS, f"response.{state}", frames, response=shown)

    def _fail(self, end: Visible, frames: list[bytes]) -> None:
        self._begin(CREATED, frames)
        refusal = refusal_of(end)  # type: ignore[arg-type]  # the one kind of event that is left
        assert refusal is not None
        number = FIRST_DELTA_AFTER + self._tokens
        text = "".join(self._text) if self._begun >= PART_ADDED else None
        shown = response_object(self._id, self._info, status_of(end), text, end)
        self._show(number + 1, "error", frames, **_error_fields(refusal))
        self._show(number + 2, "response.failed", frames, response=shown)


def _frame(number: int | None, data: dict[str, Any]) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    kind: str = data["type"]
    return b"%sevent: %s\ndata: %s\n\n" % (head, kind.encode(), orjson.dumps(data))


def _error_fields(refusal: Refusal) -> dict[str, Any]:
    return {"code": refusal.code, "message": refusal.message, "param": refusal.param}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(request_id: str, status: str, text: str | None) -> dict[str, Any]:
    """`text` None: no part has begun."""
    return {
        "type": "message",
        "id": f"msg_{request_id}",
        "status": status if status in ("in_progress", "completed") else "incomplete",
        "role": "assistant",
        "content": [] if text is None else [_text_part(text)],
    }


def status_of(last: Visible) -> str:
    """The response's status after this event."""
    if isinstance(last, Finished):
        return "incomplete" if "length" in last.finish_reasons else "completed"
    if isinstance(last, Cancelled):
        return "cancelled"
    if is_terminal(last):
        return "failed"
    return "queued" if isinstance(last, Accepted) else "in_progress"


def response_of(request_id: str, snapshot: Snapshot) -> dict[str, Any]:
    """The response object as the log tells it."""
    visible = snapshot.visible
    # without a terminal of its own it counts as expired in the end
    status = "failed" if snapshot.state == "expired" else status_of(visible[-1])
    return response_object(request_id, snapshot.info, status, text_of(visible), visible[-1])


def text_of(visible: list[Visible]) -> str | None:
    """The text so far; None: no output has begun."""
    texts = [it.text for it in visible if isinstance(it, Tokens)]
    return "".join(texts) if texts or isinstance(visible[-1], Finished) else None


def response_object(
    request_id: str,
    info: RequestInfo,
    status: str,
    text: str | None = None,
    end: Visible | None = None,
) -> dict[str, Any]:
    """OpenAI's response object. `text` None: no output has begun."""
    echo = info.response or ResponseEcho()
    usage = end.usage if isinstance(end, Finished) else None
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": parse_request_id(request_id).time_ms // 1000,
        "status": status,
        "background": echo.background,
        "completed_at": None,
        "error": _response_error(status, end),
        "incomplete_details": ({"reason": "max_output_tokens"} if status == "incomplete" else None),
        "instructions": echo.instructions,
        "max_output_tokens": echo.max_output_tokens,
        "max_tool_calls": None,
        "metadata": echo.metadata or {},
        "model": info.model,
        "output": [] if text is None else [_message_item(request_id, status, text)],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": NAMES_BY_TIER[info.tier],
        "store": echo.store,
        "temperature": echo.temperature,
        # an empty one stands for a schema too large to be repeated
        "text": {
            "format": {"type": "text"} if echo.text_format is None else echo.text_format or None
        },
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": echo.top_p,
        "truncation": "disabled",
        "usage": None
        if usage is None
        else {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "user": echo.user,
    }


def _response_error(status: str, end: Visible | None) -> dict[str, Any] | None:
    """OpenAI's few codes; ours stands in `type`. None unless the response failed."""
    if status != "failed":
        return None
    refusal = refusal_of(end) if end is not None and is_terminal(end) else None  # type: ignore[arg-type]
    if refusal is None:
        refusal = Refusal("deadline_exceeded", "The request's time ran out.")
    code = "invalid_prompt" if refusal.code in _INVALID_PROMPT else "server_error"
    return {
        "code": code,
        "message": refusal.message,
        "param": refusal.param,
        "type": refusal.code,
    }
