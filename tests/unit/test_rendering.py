"""Chunks and bodies: positions, ends, choices, counts, log probabilities."""

from typing import Any

import orjson
import pytest

from core.stream import Visible
from producer_api.rendering import ChunkRenderer, frame, whole_body
from schemas.replies import Accepted, TokenLogprob
from schemas.requests import Endpoint, RequestInfo
from tests.fake_pipeline import REQUEST_ID, finished, tokens


def info(endpoint: Endpoint = "/v1/chat/completions", **fields: Any) -> RequestInfo:
    return RequestInfo(endpoint=endpoint, model="m", tier="standard", **fields)


def frames(data: bytes) -> list[tuple[int | None, Any]]:
    """Each event of a stream: its id and its payload."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        payload = lines["data"] if lines["data"] == "[DONE]" else orjson.loads(lines["data"])
        found.append((int(lines["id"]) if "id" in lines else None, payload))
    return found


def render(about: RequestInfo, *events: Visible, after: int = 0) -> list[tuple[int | None, Any]]:
    return frames(ChunkRenderer(REQUEST_ID, about, after).render(events))


def test_a_chat_stream_has_a_role_then_text_then_a_reason_then_done() -> None:
    got = render(info(), tokens(2, text="ab"), tokens(1, text="c", seq=2, end=True), finished(3))
    assert [it["choices"][0]["delta"] for _, it in got[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "ab"},
        {"content": "c"},
        {},
    ]
    assert [it["choices"][0]["finish_reason"] for _, it in got[:-1]] == [None, None, None, "stop"]
    assert got[-1][1] == "[DONE]"


def test_ids_count_the_tokens_of_all_choices() -> None:
    got = render(
        info(n=2),
        tokens(2, text="a", choice=0),
        tokens(3, text="b", choice=1),
        tokens(1, text="c", choice=0, seq=2),
    )
    text = [
        (place, it["choices"][0]["index"])
        for place, it in got
        if it["choices"][0]["delta"].get("content")
    ]
    assert text == [(2, 0), (5, 1), (6, 0)]


def test_ids_do_not_depend_on_how_events_came() -> None:
    events: list[Visible] = [
        tokens(2, text="ab"),
        tokens(1, text="c", seq=2, end=True),
        finished(3),
    ]
    one = ChunkRenderer(REQUEST_ID, info(), 0)
    piecewise = b"".join(one.render([event]) for event in events)
    assert frames(piecewise) == render(info(), *events)


def test_a_resumed_stream_has_no_role_and_goes_on_counting() -> None:
    got = render(info(), tokens(3, text="abc"), tokens(2, text="cd", seq=3), after=3)
    assert [(place, it["choices"][0]["delta"]) for place, it in got] == [(5, {"content": "cd"})]


EVERY: list[Visible] = [
    tokens(2, text="a b ", choice=0),
    tokens(3, text="c d e ", choice=1),
    tokens(1, text="f ", choice=0, seq=2, end=True),
    tokens(2, text="g h ", choice=1, seq=3),
    tokens(0, choice=1, seq=5, end=True),
]
BOUNDARIES = [0, 2, 5, 6, 8]


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("after", range(9))
def test_from_every_position_nothing_is_lost_and_ids_are_the_same(
    endpoint: Endpoint, after: int
) -> None:
    """A position that no event ended at stands for the one before: its tokens are told again."""
    whole = render(info(endpoint, n=2), *EVERY)
    rest = render(info(endpoint, n=2), *EVERY, after=after)
    begin = max(it for it in BOUNDARIES if it <= after)

    def texts(got: list[tuple[int | None, Any]]) -> list[tuple[int | None, int, str]]:
        choices = [(place, it["choices"][0]) for place, it in got]
        found = [
            (place, it["index"], it.get("delta", {}).get("content") or it.get("text"))
            for place, it in choices
        ]
        return [(place, index, text) for place, index, text in found if text]

    assert texts(rest) == [it for it in texts(whole) if it[0] is not None and it[0] > begin]
    ends = [place for place, it in rest if it["choices"][0]["finish_reason"]]
    assert ends == [place for place in (6, 8) if place >= after]


def test_a_choice_that_begins_behind_the_cursor_has_its_role() -> None:
    got = render(info(n=2), *EVERY, after=2)
    assert got[0] == (2, got[0][1])
    choice = got[0][1]["choices"][0]
    assert (choice["index"], choice["delta"]) == (1, {"role": "assistant", "content": ""})


def test_withheld_text_moves_the_position_of_what_follows() -> None:
    got = render(info("/v1/completions"), tokens(1), tokens(1, text="ab", seq=1))
    assert [(place, it["choices"][0]["text"]) for place, it in got] == [(2, "ab")]


def test_counts_come_in_a_chunk_of_their_own_only_if_asked_for() -> None:
    events: list[Visible] = [tokens(2, text="ab", end=True), finished(2)]
    asked = render(info(include_usage=True), *events)
    usage = asked[-2][1]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 5
    assert not any(it.get("usage") for _, it in render(info(), *events)[:-1])


def test_newlines_in_text_stay_inside_their_event() -> None:
    text = "a\n\ndata: [DONE]\n\nid: 99\r\n"
    got = render(info(), tokens(1, text=text))
    assert got[1] == (1, got[1][1])
    assert got[1][1]["choices"][0]["delta"]["content"] == text


def test_a_body_joins_what_the_events_said() -> None:
    accepted = Accepted(id=REQUEST_ID, tenant="a", info=info())
    events: list[Visible] = [
        tokens(2, text="ab"),
        tokens(1, text="c", seq=2, end=True),
        finished(3),
    ]
    body = whole_body(REQUEST_ID, [accepted, *events])
    assert body["id"] == f"chatcmpl-{REQUEST_ID}"
    assert body["object"] == "chat.completion"
    assert body["created"] == 0x0190_0000_0000 // 1000
    assert body["service_tier"] == "default"
    assert body["choices"][0]["message"]["content"] == "abc"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 3


def test_log_probabilities_have_the_shape_of_their_endpoint() -> None:
    logprobs = (TokenLogprob(token="é", logprob=-0.5, top=(("e", -1.0),)),)
    chat = whole_body(
        REQUEST_ID,
        [
            Accepted(id=REQUEST_ID, tenant="a", info=info()),
            _with_logprobs(logprobs),
            finished(1),
        ],
    )
    assert chat["choices"][0]["logprobs"]["content"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}],
        }
    ]
    text = whole_body(
        REQUEST_ID,
        [
            Accepted(id=REQUEST_ID, tenant="a", info=info("/v1/completions")),
            _with_logprobs(logprobs),
            finished(1),
        ],
    )
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["é"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"e": -1.0}],
        "text_offset": [0],
    }


def _with_logprobs(logprobs: tuple[TokenLogprob, ...]) -> Visible:
    event = tokens(1, text="é", end=True)
    return type(event)(
        id=event.id,
        tenant=event.tenant,
        q=event.q,
        offset=event.offset,
        epoch=event.epoch,
        seq=0,
        token_ids=(5,),
        text="é",
        logprobs=logprobs,
        finish_reason="stop",
    )


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    "text", ["a", '"', "\\", "\n", "\0", "logprobs", '","finish_reason":null', "é€😀", "\u2028"]
)
def test_a_piece_is_what_the_encoder_would_make_of_the_whole_chunk(
    endpoint: Endpoint, text: str
) -> None:
    about = RequestInfo(endpoint=endpoint, model='m"\0', tier="standard", n=2)
    renderer = ChunkRenderer(REQUEST_ID, about, after=2)
    assert renderer.render([tokens(1, text="-", choice=0), tokens(1, text="-", choice=1)]) == b""
    for choice in (0, 1, 0):
        data = renderer.render([tokens(1, text=text, choice=choice)])
        ((_, payload),) = frames(data)
        piece = payload["choices"][0]
        assert (piece["delta"]["content"] if "delta" in piece else piece["text"]) == text
        assert (piece["index"], payload["model"]) == (choice, 'm"\0')
        assert data == frame(payload, renderer.position)
