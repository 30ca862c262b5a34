"""The body of `POST /v1/responses`: it becomes a chat, and what its object repeats of it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from core.errors import Refusal
from core.limits import Limits
from core.validation import check_body, check_echo
from producer_api.openai_bodies import Getter, ParsedRequest, check_accepted, invalid, tier_of
from producer_api.parameters import RESPONSES_REFUSED, RESPONSES_WITHOUT_EFFECT, RUN
from schemas.requests import RESPONSES, Body, Message, ResponseEcho, ResponseFormat, Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
}
_OWN_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
_TEXT_PARTS = ("input_text", "output_text", "text")
_ITEM_FIELDS = frozenset(["type", "role", "content", "id", "status", "phase"])
_FORMAT_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset(["type"]),
    "json_object": frozenset(["type"]),
    "json_schema": frozenset(["type", "name", "schema", "strict", "description"]),
}


def parse_response_request(data: Mapping[str, Any], limits: Limits) -> ParsedRequest:
    """Reads the body. Raises Refusal naming the parameter at fault."""
    _check_names(data, limits)
    get = Getter(data)
    model = get.text("model")
    if model is None:
        raise invalid("model", "'model' is missing: name one of GET /v1/models.")
    instructions = get.text("instructions")
    first = () if instructions is None else (Message(role="system", content=instructions),)
    wanted, shown = _text_format(data)
    body = Body(
        messages=first + _input(data.get("input")),
        max_tokens=get.integer("max_output_tokens"),
        temperature=get.number("temperature", 1.0),
        top_p=get.number("top_p", 1.0),
        response_format=wanted,
    )
    _check_body(body, limits)
    background = get.boolean("background")
    store = get.boolean("store") if data.get("store") is not None else True
    if background and not store:
        raise invalid("background", "'background' needs 'store': its answer must be fetched.")
    echo = ResponseEcho(
        instructions=instructions if _is_short(instructions, limits) else None,
        metadata=data.get("metadata") or None,
        store=store,
        background=background,
        temperature=body.temperature,
        top_p=body.top_p,
        max_output_tokens=body.max_tokens,
        text_format=shown if _is_short(shown, limits) else {},
        user=data.get("user"),
    )
    check_echo(echo, limits)
    return ParsedRequest(
        model, body, tier_of(data), get.boolean("stream"), include_usage=False, echo=echo
    )


def _check_body(body: Body, limits: Limits) -> None:
    """Its bounds, told by the names that the client used."""
    try:
        check_body(body, RESPONSES, limits)
    except Refusal as refusal:
        name = _OWN_NAMES.get(refusal.param or "")
        if name is None:
            raise
        message = refusal.message.replace(f"'{refusal.param}'", f"'{name}'")
        raise invalid(name, message, refusal.code) from None


def _is_short(value: str | dict[str, Any] | None, limits: Limits) -> bool:
    """Whether a response repeats it. What it repeats stands on the log several times."""
    return len(msgspec.json.encode(value)) <= limits.echo_bytes


def _check_names(data: Mapping[str, Any], limits: Limits) -> None:
    for name, value in data.items():
        if name in RESPONSES_REFUSED and value is not None and value != []:
            message = f"'{name}': {RESPONSES_REFUSED[name]}."
            raise invalid(name, message, "unsupported_parameter")
        known = name in RUN[RESPONSES] or name in RESPONSES_WITHOUT_EFFECT
        if not known and name not in RESPONSES_REFUSED:
            raise invalid(name[:64], f"Unknown parameter: '{name[:64]}'.", "unknown_parameter")
    check_accepted(data, limits)
    inert: Mapping[str, tuple[object, ...]] = {
        "tool_choice": ("auto", "none"),
        "truncation": ("disabled",),
        "top_logprobs": (0,),
        "parallel_tool_calls": (True, False),
    }
    for name, harmless in inert.items():
        value = data.get(name)
        if value is not None and value not in harmless:
            allowed = " or ".join(str(it).lower() for it in harmless)
            message = f"'{name}' may only be {allowed}."
            raise invalid(name, message, "unsupported_parameter")


def _input(given: Any) -> tuple[Message, ...]:
    if isinstance(given, str):
        return (Message(role="user", content=given),)
    if not isinstance(given, list) or not given:
        raise invalid("input", "'input' must be a text or a list of messages.")
    return tuple(_message(item, f"input[{index}]") for index, item in enumerate(given))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise invalid(where, f"'{where}' must be an object.")
    if item.get("type", "message") != "message":
        raise invalid(f"{where}.type", f"'{where}.type': only messages are supported.")
    unknown = set(item) - _ITEM_FIELDS
    if unknown:
        name = f"{where}.{min(unknown)[:64]}"
        raise invalid(name, f"Unknown parameter: '{name}'.", "unknown_parameter")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{where}.role", f"'{where}.role' must be one of {', '.join(_ROLES)}.")
    return Message(role=_ROLES[role], content=_content(item.get("content"), f"{where}.content"))


def _content(given: Any, param: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise invalid(param, f"'{param}' must be a text or a list of text parts.")
    texts: list[str] = []
    for part in given:
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
            raise invalid(param, f"'{param}': only parts of type input_text are supported.")
        text = part.get("text")
        if not isinstance(text, str):
            raise invalid(param, f"'{param}': a text part must have a text.")
        texts.append(text)
    return "".join(texts)


def _text_format(data: Mapping[str, Any]) -> tuple[ResponseFormat | None, dict[str, Any] | None]:
    """What the engine is asked for, and the object that the response repeats."""
    text = data.get("text")
    if text is None:
        return None, None
    if not isinstance(text, dict) or set(text) - {"format", "verbosity"}:
        raise invalid("text", "'text' must be an object with 'format'.")
    if text.get("verbosity") is not None:
        message = "'text.verbosity': the models served here have no verbosity."
        raise invalid("text.verbosity", message, "unsupported_parameter")
    given = text.get("format")
    return (None, None) if given is None else _read_format(given)


def _read_format(given: Any) -> tuple[ResponseFormat | None, dict[str, Any] | None]:
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in _FORMAT_FIELDS:
        raise invalid("text.format", "'text.format.type' must be text, json_object or json_schema.")
    if set(given) - _FORMAT_FIELDS[kind]:
        name = f"text.format.{min(set(given) - _FORMAT_FIELDS[kind])[:64]}"
        raise invalid(name, f"Unknown parameter: '{name}'.", "unknown_parameter")
    if kind == "text":
        return None, None
    if kind == "json_object":
        return ResponseFormat(type="json_object"), {"type": kind}
    schema, name = given.get("schema"), given.get("name")
    if not isinstance(schema, dict):
        raise invalid("text.format", "'text.format.schema' must be an object.")
    if not isinstance(name, str) or not 1 <= len(name) <= 64:
        raise invalid("text.format", "'text.format.name' must be a text of 1 to 64 characters.")
    return ResponseFormat(type="json_schema", schema=schema), dict(given)
