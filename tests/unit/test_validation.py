"""The bounds that the API and workers share."""

from typing import Any

import pytest

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS
from core.validation import check_body, check_request
from schemas.requests import CHAT, COMPLETIONS, Body, Deadlines, Message, Request, ResponseFormat


def request(**fields: Any) -> Request:
    made: dict[str, Any] = {
        "id": "x",
        "tenant": "a",
        "tier": "standard",
        "model": "m",
        "endpoint": COMPLETIONS,
        "body": Body(prompt="hi"),
        **fields,
    }
    return Request(**made)


def refused(body: Body, endpoint: str = COMPLETIONS) -> str | None:
    """The parameter at fault."""
    with pytest.raises(Refusal) as raised:
        check_body(body, endpoint, DEFAULT_LIMITS)
    assert raised.value.kind.status == 400
    return raised.value.param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": 8},
        {"max_tokens": 1},
        {"max_tokens": 131_072},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_p": 1.0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": ("x" * 256,) * 16},
        {"logprobs": 20},
        {"logprobs": 15, "n": 8, "max_tokens": 4096},
        {"logit_bias": {"5": -100.0}},
        {"response_format": ResponseFormat(type="json_object")},
    ],
)
def test_what_lies_on_a_bound_is_within_it(fields: dict[str, Any]) -> None:
    check_body(Body(prompt="hi", **fields), COMPLETIONS, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 10**400}, "n"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"logprobs": 15, "n": 8, "max_tokens": 4097}, "logprobs"),
        ({"logit_bias": {"²": 1.0}}, "logit_bias"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
        ({"response_format": ResponseFormat(type="json_schema")}, "response_format"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"messages": (Message(role="user", content="x"),)}, "messages"),
    ],
)
def test_what_lies_beyond_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(Body(**{"prompt": "hi", **fields})) == param


def test_a_chat_has_messages_and_no_prompt() -> None:
    assert refused(Body(), CHAT) == "messages"
    assert (
        refused(Body(prompt="x", messages=(Message(role="user", content="x"),)), CHAT) == "prompt"
    )


def test_bytes_of_text_are_counted_not_characters() -> None:
    half = Message(role="user", content="é" * 131_072)
    check_body(Body(messages=(half, half)), CHAT, DEFAULT_LIMITS)
    more = Message(role="user", content="é")
    assert refused(Body(messages=(half, half, more)), CHAT) == "messages"


def test_a_name_that_is_too_long_is_refused() -> None:
    assert refused(Body(messages=(Message(role="user", content="x", name="n" * 65),)), CHAT)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "x" * 129}, "tenant"),
        ({"model": "x" * 257}, "model"),
        ({"deadlines": Deadlines(total_seconds=0)}, "deadlines"),
        ({"deadlines": Deadlines(start_seconds=float("inf"))}, "deadlines"),
    ],
)
def test_what_surrounds_the_body_is_bounded_too(fields: dict[str, Any], param: str) -> None:
    check_request(request(), DEFAULT_LIMITS)
    with pytest.raises(Refusal) as raised:
        check_request(request(**fields), DEFAULT_LIMITS)
    assert raised.value.param == param


def test_a_refusal_never_repeats_the_text() -> None:
    with pytest.raises(Refusal) as raised:
        check_body(Body(prompt="secret words", stop=("secret",) * 17), COMPLETIONS, DEFAULT_LIMITS)
    assert "secret" not in raised.value.message
