"""OpenAI's request bodies: every parameter is run, accepted without effect, or refused with a reason.

Nothing is silently ignored; the tables are in `parameters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Refusal
from core.limits import Limits
from core.validation import check_body
from producer_api.parameters import REFUSED, RUN, TIERS_BY_NAME, WITHOUT_EFFECT
from schemas.requests import (
    CHAT,
    Body,
    Endpoint,
    Message,
    ResponseEcho,
    ResponseFormat,
    Tier,
)


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A checked body with what is not part of the run."""

    model: str
    body: Body
    tier: Tier
    stream: bool
    include_usage: bool
    echo: ResponseEcho | None = None


def invalid(param: str, message: str, code: str = "invalid_request") -> Refusal:
    """A 400 that names the parameter."""
    return Refusal(code, message, param=param)


def parse_request(endpoint: Endpoint, data: Mapping[str, Any], limits: Limits) -> ParsedRequest:
    """Reads the body of a chat or a completion. Raises Refusal naming the parameter at fault."""
    _check_names(endpoint, data, limits)
    get = Getter(data)
    model = get.text("model")
    if model is None:
        raise invalid("model", "'model' is missing: name one of GET /v1/models.")
    body = Body(
        messages=_messages(data) if endpoint == CHAT else None,
        prompt=_prompt(data) if endpoint != CHAT else None,
        max_tokens=_max_tokens(get),
        n=get.integer("n") or 1 if data.get("n") != 0 else 0,
        temperature=get.number("temperature", 1.0),
        top_p=get.number("top_p", 1.0),
        presence_penalty=get.number("presence_penalty", 0.0),
        frequency_penalty=get.number("frequency_penalty", 0.0),
        seed=get.integer("seed"),
        stop=_stop(data),
        logprobs=_logprobs(endpoint, get),
        logit_bias=_logit_bias(data),
        response_format=_response_format(data),
    )
    check_body(body, endpoint, limits)
    stream = get.boolean("stream")
    return ParsedRequest(model, body, tier_of(data), stream, _include_usage(data, stream=stream))


def _check_names(endpoint: Endpoint, data: Mapping[str, Any], limits: Limits) -> None:
    for name, value in data.items():
        if name in REFUSED and value is not None and value != []:
            raise invalid(name, f"'{name}': {REFUSED[name]}.", "unsupported_parameter")
        if name not in RUN[endpoint] and name not in WITHOUT_EFFECT and name not in REFUSED:
            raise invalid(name[:64], f"Unknown parameter: '{name[:64]}'.", "unknown_parameter")
    if data.get("best_of") not in (None, data.get("n") or 1):
        raise invalid("best_of", "'best_of' must equal 'n'.", "unsupported_parameter")
    if data.get("echo"):
        raise invalid("echo", "'echo' is not supported.", "unsupported_parameter")
    if data.get("suffix"):
        raise invalid("suffix", "'suffix' is not supported.", "unsupported_parameter")
    check_accepted(data, limits)


def check_accepted(data: Mapping[str, Any], limits: Limits) -> None:
    """What has no effect is bounded all the same."""
    user = data.get("user")
    if user is not None and not (isinstance(user, str) and len(user) <= limits.user_chars):
        raise invalid("user", f"'user' must be a text of at most {limits.user_chars} characters.")
    metadata = data.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > limits.metadata_count:
        raise invalid("metadata", f"'metadata' must be at most {limits.metadata_count} pairs.")
    for value in metadata.values():
        if not isinstance(value, str) or len(value) > limits.metadata_chars:
            raise invalid(
                "metadata",
                f"'metadata' values must be texts of at most {limits.metadata_chars} characters.",
            )


class Getter:
    """Typed reads of a JSON object; null is the same as absent."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def text(self, name: str) -> str | None:
        value = self.data.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(name, f"'{name}' must be a text.")
        return value

    def integer(self, name: str) -> int | None:
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, f"'{name}' must be an integer.")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, f"'{name}' must be a number.")
        return float(value) if abs(value) < 1e300 else float("inf")

    def boolean(self, name: str) -> bool:
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name, f"'{name}' must be true or false.")
        return bool(value)


def _messages(data: Mapping[str, Any]) -> tuple[Message, ...]:
    given = data.get("messages")
    if not isinstance(given, list):
        raise invalid("messages", "'messages' must be a list of messages.")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(given))


_HISTORY = ("refusal", "annotations", "audio", "function_call", "tool_calls")


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise invalid(where, f"'{where}' must be an object.")
    role = given.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise invalid(
            f"{where}.role",
            f"'{where}.role' must be one of system, developer, user, assistant.",
        )
    # what an earlier answer carried beside its text comes back as null
    unset = {name for name in _HISTORY if given.get(name) in (None, [])}
    unknown = set(given) - {"role", "content", "name"} - unset
    if unknown:
        name = min(unknown)[:64]
        raise invalid(
            f"{where}.{name}", f"Unknown parameter: '{where}.{name}'.", "unknown_parameter"
        )
    name = given.get("name")
    if name is not None and not (isinstance(name, str) and len(name) <= 64):
        raise invalid(f"{where}.name", f"'{where}.name' must be a text of at most 64 characters.")
    return Message(role=role, content=_content(given.get("content"), where), name=name)


def _content(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    param = f"{where}.content"
    if not isinstance(given, list):
        raise invalid(param, f"'{param}' must be a text or a list of text parts.")
    parts: list[str] = []
    for part in given:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise invalid(param, f"'{param}': only parts of type text are supported.")
        text = part.get("text")
        if not isinstance(text, str):
            raise invalid(param, f"'{param}': a text part must have a text.")
        parts.append(text)
    return "".join(parts)


def _prompt(data: Mapping[str, Any]) -> str:
    given = data.get("prompt")
    if isinstance(given, list):
        raise invalid(
            "prompt", "'prompt': a list of prompts is not supported yet.", "unsupported_parameter"
        )
    if not isinstance(given, str):
        raise invalid("prompt", "'prompt' must be a text.")
    return given


def _max_tokens(get: Getter) -> int | None:
    old, new = get.integer("max_tokens"), get.integer("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise invalid(
            "max_tokens", "'max_tokens' and 'max_completion_tokens' must agree; give only one."
        )
    return new if new is not None else old


def _stop(data: Mapping[str, Any]) -> tuple[str, ...]:
    given = data.get("stop")
    if given is None:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid("stop", "'stop' must be a text or a list of texts.")
    return tuple(texts)


def _logprobs(endpoint: Endpoint, get: Getter) -> int | None:
    if endpoint != CHAT:
        return get.integer("logprobs")
    wanted, top = get.boolean("logprobs"), get.integer("top_logprobs")
    if top is not None and not wanted:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
    return (top or 0) if wanted else None


def _logit_bias(data: Mapping[str, Any]) -> dict[str, float] | None:
    given = data.get("logit_bias")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise invalid("logit_bias", "'logit_bias' must map token ids to numbers.")
    for value in given.values():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid("logit_bias", "'logit_bias' must map token ids to numbers.")
    return {token: float(value) for token, value in given.items()} or None


def _response_format(data: Mapping[str, Any]) -> ResponseFormat | None:
    given = data.get("response_format")
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat(type="json_object")
    if kind == "json_schema":
        wrapper = given.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if isinstance(schema, dict):
            return ResponseFormat(type="json_schema", schema=schema)
        raise invalid("response_format", "'response_format.json_schema.schema' must be an object.")
    raise invalid(
        "response_format", "'response_format.type' must be text, json_object or json_schema."
    )


def tier_of(data: Mapping[str, Any]) -> Tier:
    """The tier that `service_tier` asks for. Raises Refusal."""
    given = data.get("service_tier")
    if given is None:
        return "standard"
    if not isinstance(given, str) or given not in TIERS_BY_NAME:
        known = ", ".join(sorted(TIERS_BY_NAME))
        raise invalid("service_tier", f"'service_tier' must be one of {known}.")
    return TIERS_BY_NAME[given]


def _include_usage(data: Mapping[str, Any], *, stream: bool) -> bool:
    options = data.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options", "'stream_options' needs 'stream': true.")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise invalid("stream_options", "'stream_options' may have include_usage alone.")
    include = options.get("include_usage", False)
    if not isinstance(include, bool):
        raise invalid("stream_options", "'stream_options.include_usage' must be true or false.")
    return include
