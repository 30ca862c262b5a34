"""A response's events: their numbers, their resumption from any of them, and OpenAI's own types."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import responses as sdk

from core.stream import Visible
from producer_api.response_rendering import ResponseRenderer, last_number, response_of
from producer_api.submission import snapshot_of
from schemas.replies import Accepted, Cancelled, ErrorInfo, Expired, Failed, Started
from schemas.requests import RESPONSES, RequestInfo, ResponseEcho
from tests.fake_pipeline import ID_MS, REQUEST_ID, finished, tokens

ECHO = ResponseEcho(
    instructions="Be brief.",
    metadata={"order": "1"},
    background=True,
    temperature=0.5,
    max_output_tokens=4,
    text_format={"type": "json_schema", "name": "it", "schema": {"type": "object"}},
    user="ann",
)
INFO = RequestInfo(endpoint=RESPONSES, model="m", tier="standard", stream=True, response=ECHO)
ACCEPTED = Accepted(id=REQUEST_ID, tenant="a", info=INFO)
ORIGIN: dict[str, Any] = {"id": REQUEST_ID, "tenant": "a", "q": "q/0", "offset": 7, "epoch": 1}
STARTED = Started(**ORIGIN, starts=1, counts=(0,), info=INFO, worker="w")
ENDS: dict[str, Callable[[int], Visible]] = {
    "finished": finished,
    "length": lambda count: msgspec.structs.replace(finished(count), finish_reasons=("length",)),
    "failed": lambda count: Failed(
        **ORIGIN, counts=(count,), error=ErrorInfo(code="engine_failed", message="It broke.")
    ),
    "cancelled": lambda count: Cancelled(**ORIGIN, counts=(count,)),
    "expired": lambda count: Expired(**ORIGIN, counts=(count,)),
}


def answer(sizes: Iterable[int], end: str = "finished") -> list[Visible]:
    """An answer whose token i is the text `i `, in events of these sizes."""
    events: list[Visible] = [ACCEPTED, STARTED]
    seq = 0
    for size in sizes:
        text = "".join(f"{i} " for i in range(seq, seq + size))
        events.append(tokens(size, text=text, seq=seq))
        seq += size
    return [*events, ENDS[end](seq)]


def shown(data: bytes) -> list[dict[str, Any]]:
    """The payloads, whose numbers and types are those of their frames."""
    found: list[dict[str, Any]] = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        payload = orjson.loads(lines["data"])
        assert lines["event"] == payload["type"]
        assert int(lines["id"]) == payload["sequence_number"]
        found.append(payload)
    return found


def rendered(events: Iterable[Visible], after: int = -1) -> list[dict[str, Any]]:
    return shown(ResponseRenderer(REQUEST_ID, INFO, after).render(events))


def numbers(events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(it["sequence_number"], it["type"].removeprefix("response.")) for it in events]


def test_the_numbers_are_those_of_the_page() -> None:
    assert numbers(rendered(answer([2, 1]))) == [
        (0, "created"),
        (1, "queued"),
        (2, "in_progress"),
        (3, "output_item.added"),
        (4, "content_part.added"),
        (6, "output_text.delta"),
        (7, "output_text.delta"),
        (8, "output_text.done"),
        (9, "content_part.done"),
        (10, "output_item.done"),
        (11, "completed"),
    ]


@given(
    st.lists(st.integers(1, 4), max_size=6),
    st.lists(st.integers(1, 3)),
    st.sampled_from(sorted(ENDS)),
)
def test_numbers_agree_however_events_are_read(sizes: list[int], cuts: list[int], end: str) -> None:
    """Two replicas, one of which reads pieces: the same numbers, and the same text up to each."""
    events = answer(sizes, end)
    whole = rendered(events)
    pieces, renderer, rest = b"", ResponseRenderer(REQUEST_ID, INFO), list(events)
    for cut in [*cuts, len(rest)]:
        pieces += renderer.render(rest[:cut])
        rest = rest[cut:]
    assert shown(pieces) == whole
    assert [it["sequence_number"] for it in whole] == sorted(
        {it["sequence_number"] for it in whole}
    )
    assert renderer.position == whole[-1]["sequence_number"] == last_number(events)


@pytest.mark.parametrize("end", sorted(ENDS))
def test_going_on_from_any_event_shows_the_rest_and_nothing_twice(end: str) -> None:
    events = answer([3, 1, 2], end)
    whole = rendered(events)
    for after in range(-1, whole[-1]["sequence_number"] + 1):
        rest = rendered(events, after)
        assert rest == [it for it in whole if it["sequence_number"] > after]


@pytest.mark.parametrize("end", sorted(ENDS))
def test_the_last_number_is_that_of_what_was_shown_so_far(end: str) -> None:
    events: list[Visible] = answer([2, 1], end)
    events.insert(3, tokens(1, text="", seq=2))  # text that is withheld for the moment
    for upto in range(1, len(events) + 1):
        renderer = ResponseRenderer(REQUEST_ID, INFO)
        renderer.render(events[:upto])
        assert last_number(events[:upto]) == renderer.position


def test_a_merged_chunk_has_the_number_of_its_last_token() -> None:
    apart, merged = rendered(answer([1, 1, 1])), rendered(answer([3]))
    deltas = [it for it in merged if it["type"] == "response.output_text.delta"]
    assert [(it["sequence_number"], it["delta"]) for it in deltas] == [(7, "0 1 2 ")]
    assert merged[-4:] == apart[-4:]


SDK_TYPES: dict[str, type[pydantic.BaseModel]] = {
    "response.created": sdk.ResponseCreatedEvent,
    "response.queued": sdk.ResponseQueuedEvent,
    "response.in_progress": sdk.ResponseInProgressEvent,
    "response.output_item.added": sdk.ResponseOutputItemAddedEvent,
    "response.content_part.added": sdk.ResponseContentPartAddedEvent,
    "response.output_text.delta": sdk.ResponseTextDeltaEvent,
    "response.output_text.done": sdk.ResponseTextDoneEvent,
    "response.content_part.done": sdk.ResponseContentPartDoneEvent,
    "response.output_item.done": sdk.ResponseOutputItemDoneEvent,
    "response.completed": sdk.ResponseCompletedEvent,
    "response.incomplete": sdk.ResponseIncompleteEvent,
    "response.failed": sdk.ResponseFailedEvent,
    "error": sdk.ResponseErrorEvent,
}


@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("sizes", [[], [2, 1]], ids=["empty", "text"])
def test_every_event_is_valid_by_the_types_of_openais_client(end: str, sizes: list[int]) -> None:
    for event in rendered(answer(sizes, end)):
        SDK_TYPES[event["type"]].model_validate(event, strict=True)


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("finished", "completed", "response.completed"),
        ("length", "incomplete", "response.incomplete"),
        ("failed", "failed", "response.failed"),
        ("expired", "failed", "response.failed"),
        ("cancelled", "cancelled", "response.failed"),
    ],
)
def test_the_end_says_how_it_ended(end: str, status: str, last: str) -> None:
    events = answer([2], end)
    final = rendered(events)[-1]
    response = response_of(REQUEST_ID, snapshot_of(REQUEST_ID, events, ID_MS, 5.0))
    assert final["type"] == last
    assert final["response"] == response
    assert response["status"] == status
    assert (response["incomplete_details"] is not None) == (status == "incomplete")
    assert (response["error"] is not None) == (status == "failed")


def test_the_object_repeats_what_was_asked_and_is_valid() -> None:
    response = response_of(REQUEST_ID, snapshot_of(REQUEST_ID, answer([2]), ID_MS, 5.0))
    parsed = sdk.Response.model_validate(response, strict=True)
    assert parsed.output_text == "0 1 "
    assert (parsed.instructions, parsed.metadata, parsed.background) == (
        "Be brief.",
        {"order": "1"},
        True,
    )
    assert (parsed.temperature, parsed.max_output_tokens, parsed.user) == (0.5, 4, "ann")
    assert parsed.usage is not None
    assert (parsed.usage.input_tokens, parsed.usage.output_tokens) == (3, 2)
    assert response["text"]["format"] == ECHO.text_format


def test_without_a_terminal_it_counts_as_failed_once_it_can_run_no_more() -> None:
    snapshot = snapshot_of(REQUEST_ID, [ACCEPTED], ID_MS + 3_600_000, 5.0)
    response = response_of(REQUEST_ID, snapshot)
    assert (response["status"], response["error"]["type"]) == ("failed", "deadline_exceeded")
    sdk.Response.model_validate(response, strict=True)


def test_text_that_is_withheld_comes_with_the_number_of_a_later_token() -> None:
    events: list[Visible] = [ACCEPTED, STARTED, tokens(1), tokens(1, text="ab", seq=1)]
    deltas = [it for it in rendered(events) if it["type"] == "response.output_text.delta"]
    assert [(it["sequence_number"], it["delta"]) for it in deltas] == [(6, "ab")]


def test_a_second_start_after_a_failover_changes_no_number() -> None:
    second = msgspec.structs.replace(STARTED, epoch=2, starts=2, counts=(2,))
    events = answer([2, 1])
    assert rendered([*events[:3], second, *events[3:]]) == rendered(events)
