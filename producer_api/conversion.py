"""From a public body to the canonical one: defaults filled in, what is not run refused.

Bounds are `core.validation`'s, the same that workers apply; only names differ between the two forms,
so a refusal is told under the name that the client used.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import Refusal
from core.limits import Limits
from core.validation import check_body
from schemas.requests import (
    CHAT,
    COMPLETIONS,
    Body,
    Endpoint,
    Message,
    ResponseFormat,
    Role,
    Tier,
)

from producer_api.parameters import CHAT_PARAMETERS, COMPLETION_PARAMETERS, Parameter
from producer_api.public_types import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    ContentPart,
    PublicFormat,
    Sampling,
)

METADATA_KEY_CHARS_MAX = 64

TIER_OF: dict[str, Tier] = {
    "priority": "premium",
    "default": "standard",
    "auto": "standard",
    "flex": "free",
}
SERVICE_TIER_OF: dict[Tier, str] = {
    "premium": "priority",
    "standard": "default",
    "free": "flex",
    "batch": "flex",
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
}
_PARTS = {"image_url": "Images", "input_audio": "Audio", "file": "Files", "refusal": "Refusals"}
_HISTORY = ("refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id")


def _refused(table: Mapping[str, Parameter]) -> tuple[tuple[str, Parameter], ...]:
    return tuple((name, it) for name, it in table.items() if it.verdict == "refused")


_CHAT_REFUSED = _refused(CHAT_PARAMETERS)
_COMPLETION_REFUSED = _refused(COMPLETION_PARAMETERS)


def invalid(param: str, must: str) -> Refusal:
    """A refusal of one parameter, in the form of all of them."""
    return Refusal("invalid_request", f"'{param}' {must}.", param=param)


def chat_body(public: ChatBody, limits: Limits) -> Body:
    """The canonical body of a chat completion. Raises Refusal."""
    _refuse(public, _CHAT_REFUSED)
    _check_accepted(public, limits)
    for name in ("prompt_cache_key", "safety_identifier"):
        _bounded_text(name, getattr(public, name), limits.user_chars)
    names: dict[str, str] = {"logprobs": "top_logprobs"}
    if public.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
        if public.max_tokens not in (None, public.max_completion_tokens):
            raise invalid("max_tokens", "contradicts 'max_completion_tokens': send one of them")
    if public.top_logprobs is not None and not public.logprobs:
        raise invalid("top_logprobs", "needs 'logprobs' to be true")
    body = Body(
        messages=tuple(_message(it, place) for place, it in enumerate(public.messages)),
        max_tokens=_first(public.max_completion_tokens, public.max_tokens),
        logprobs=(public.top_logprobs or 0) if public.logprobs else None,
        response_format=_format(public.response_format),
        **_sampling(public),
    )
    return _checked(body, CHAT, limits, names)


def completion_body(public: CompletionBody, limits: Limits) -> Body:
    """The canonical body of a completion. Raises Refusal."""
    _refuse(public, _COMPLETION_REFUSED)
    _check_accepted(public, limits)
    if isinstance(public.prompt, list):
        of_text = all(isinstance(it, str) for it in public.prompt)
        what = "a list of prompts" if of_text else "a list of token ids"
        raise Refusal(
            "unsupported_parameter",
            f"'prompt' must be one string: {what} is not run; send one request for each prompt.",
            param="prompt",
        )
    if public.best_of not in (None, public.n or 1):
        raise Refusal(
            "unsupported_parameter",
            "'best_of' must be equal to 'n': choices are not ranked.",
            param="best_of",
        )
    body = Body(
        prompt=public.prompt,
        max_tokens=public.max_tokens,
        logprobs=public.logprobs,
        **_sampling(public),
    )
    return _checked(body, COMPLETIONS, limits, {})


def tier_of(service_tier: str | None) -> Tier:
    """The tier that a `service_tier` asks for. Raises Refusal."""
    if service_tier is None:
        return "standard"
    tier = TIER_OF.get(service_tier)
    if tier is None:
        raise invalid("service_tier", "must be one of auto, default, flex, priority")
    return tier


def wants_usage(public: Sampling) -> bool:
    """Whether a stream ends with its token counts. Raises Refusal."""
    options = public.stream_options
    if options is None:
        return False
    if not public.stream:
        raise invalid("stream_options", "needs 'stream' to be true")
    return bool(options.include_usage)


def _refuse(public: Sampling, refused: Iterable[tuple[str, Parameter]]) -> None:
    for name, parameter in refused:
        value = getattr(public, name)
        if value is not None and value not in parameter.neutral:
            raise Refusal(
                "unsupported_parameter",
                f"'{name}' is not supported: {parameter.note}.",
                param=name,
            )


def _check_accepted(public: Sampling, limits: Limits) -> None:
    _bounded_text("user", public.user, limits.user_chars)
    if public.metadata is None:
        return
    if len(public.metadata) > limits.metadata_count:
        raise invalid("metadata", f"may have at most {limits.metadata_count} pairs")
    for key, value in public.metadata.items():
        if len(key) > METADATA_KEY_CHARS_MAX or len(value) > limits.metadata_chars:
            raise invalid(
                "metadata",
                f"keys may have at most {METADATA_KEY_CHARS_MAX}, values at most "
                f"{limits.metadata_chars} characters",
            )


def _bounded_text(name: str, text: str | None, chars_max: int) -> None:
    if text is not None and len(text) > chars_max:
        raise invalid(name, f"may have at most {chars_max} characters")


def _sampling(public: Sampling) -> dict[str, Any]:
    """The fields that keep their meaning; null is the default."""
    stop = public.stop
    fields: dict[str, Any] = {
        "n": public.n,
        "temperature": public.temperature,
        "top_p": public.top_p,
        "presence_penalty": public.presence_penalty,
        "frequency_penalty": public.frequency_penalty,
        "seed": public.seed,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "logit_bias": public.logit_bias,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _message(public: ChatMessage, place: int) -> Message:
    here = f"messages[{place}]"
    role = _ROLES.get(public.role)
    if role is None:
        if public.role in ("tool", "function"):
            raise Refusal(
                "unsupported_parameter",
                f"'{here}.role' is not supported: tools are not run yet.",
                param=f"{here}.role",
            )
        raise invalid(f"{here}.role", "must be one of system, developer, user, assistant")
    for name in _HISTORY:
        value = getattr(public, name)
        if value is not None and value != []:
            raise Refusal(
                "unsupported_parameter",
                f"'{here}.{name}' is not supported: messages are text.",
                param=f"{here}.{name}",
            )
    content = public.content
    if content is None:
        raise invalid(f"{here}.content", "is required")
    if isinstance(content, list):
        parts = enumerate(content)
        content = "\n".join(_part(it, f"{here}.content[{place}]") for place, it in parts)
    return Message(role=role, content=content, name=public.name)


def _part(part: ContentPart, here: str) -> str:
    if part.type != "text":
        what = _PARTS.get(part.type, "Parts of this type")
        raise Refusal(
            "unsupported_parameter",
            f"{what} are not supported: '{here}.type' must be text.",
            param=f"{here}.type",
        )
    if part.text is None:
        raise invalid(f"{here}.text", "is required")
    return part.text


def _format(public: PublicFormat | None) -> ResponseFormat | None:
    if public is None:
        return None
    given = public.json_schema
    if public.type == "json_schema":
        if given is None or given.schema is None:
            raise invalid("response_format.json_schema.schema", "is required")
        return ResponseFormat(type="json_schema", schema=given.schema)
    if given is not None:
        raise invalid("response_format.json_schema", "needs 'type' to be json_schema")
    if public.type == "json_object":
        return ResponseFormat(type="json_object")
    if public.type == "text":
        return None
    raise invalid("response_format.type", "must be one of text, json_object, json_schema")


def _checked(body: Body, endpoint: Endpoint, limits: Limits, names: Mapping[str, str]) -> Body:
    try:
        check_body(body, endpoint, limits)
    except Refusal as refusal:
        name = names.get(refusal.param or "")
        if name is None:
            raise
        message = refusal.message.replace(f"'{refusal.param}'", f"'{name}'")
        raise Refusal(refusal.code, message, param=name) from None
    return body


def _first(*values: int | None) -> int | None:
    return next((it for it in values if it is not None), None)
