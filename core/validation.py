"""Bounds of a request, checked before its record is written and again when a worker picks it up.

The API refuses what lies beyond; a topic producer's record that does is parked with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import Refusal
from core.limits import Limits
from schemas.requests import (
    COMPLETIONS,
    RESPONSES,
    Body,
    Request,
    ResponseEcho,
    ResponseFormat,
)

TENANT_CHARS_MAX = 128
MODEL_CHARS_MAX = 256
NAME_CHARS_MAX = 64


def check_request(request: Request, limits: Limits) -> None:
    """Raises Refusal with the parameter at fault unless everything lies within its bounds."""
    _check(1 <= len(request.tenant) <= TENANT_CHARS_MAX, "tenant", "names 1 to 128 characters")
    _check(1 <= len(request.model) <= MODEL_CHARS_MAX, "model", "names 1 to 256 characters")
    budgets = request.deadlines
    for seconds in (budgets.start_seconds, budgets.first_token_seconds, budgets.total_seconds):
        _check(math.isfinite(seconds) and seconds > 0, "deadlines", "are positive seconds")
    check_body(request.body, request.endpoint, limits)
    if request.response is not None:
        _check(request.endpoint == RESPONSES, "response", "belongs to /v1/responses")
        check_echo(request.response, limits)


def check_echo(echo: ResponseEcho, limits: Limits) -> None:
    """The bounds of what a response repeats: it travels with more records than one."""
    size = len((echo.instructions or "").encode(errors="replace"))
    _check(
        size <= limits.echo_bytes, "response", f"repeats at most {limits.echo_bytes} bytes of text"
    )
    if echo.text_format is not None:
        _check_tree(echo.text_format, "response", limits.schema_depth + 1, limits.echo_bytes)
    check_metadata(echo.metadata, limits)
    _check(
        len(echo.user or "") <= limits.user_chars,
        "user",
        f"must be a text of at most {limits.user_chars} characters",
    )


def check_metadata(metadata: Any, limits: Limits) -> None:
    """Raises Refusal unless it is absent, or pairs of texts within their bounds."""
    if metadata is None:
        return
    _check(
        isinstance(metadata, dict) and len(metadata) <= limits.metadata_count,
        "metadata",
        f"must be at most {limits.metadata_count} pairs",
    )
    for name, value in metadata.items():
        _check(
            isinstance(value, str) and max(len(name), len(value)) <= limits.metadata_chars,
            "metadata",
            f"must map texts to texts of at most {limits.metadata_chars} characters",
        )


def check_body(body: Body, endpoint: str, limits: Limits) -> None:
    """The same for a body alone. `endpoint` says which of `messages` and `prompt` it must have."""
    _check_text(body, endpoint, limits)
    _within("n", body.n, 1, limits.n)
    if body.max_tokens is not None:
        _within("max_tokens", body.max_tokens, 1, limits.max_tokens)
    _within("temperature", body.temperature, 0, 2)
    _within("top_p", body.top_p, 0, 1)
    _check(body.top_p > 0, "top_p", "must be greater than 0")
    _within("presence_penalty", body.presence_penalty, -2, 2)
    _within("frequency_penalty", body.frequency_penalty, -2, 2)
    if body.seed is not None:
        _within("seed", body.seed, -(2**63), 2**63 - 1)
    if body.logprobs is not None:
        _within("logprobs", body.logprobs, 0, limits.top_logprobs)
        # an answer that is not streamed is held whole, and each of these takes its place
        tokens = body.n * (body.max_tokens or limits.max_tokens_default)
        _check(
            tokens * (1 + body.logprobs) <= limits.answer_logprobs,
            "logprobs",
            f"times the tokens of all choices may make at most {limits.answer_logprobs}: ask for "
            "fewer alternatives, tokens or choices",
        )
    _check_stop(body.stop, limits)
    _check_bias(body.logit_bias, limits)
    if body.response_format is not None:
        _check_format(body.response_format, limits)


def _check(holds: bool, param: str, must: str) -> None:
    if not holds:
        raise Refusal("invalid_request", f"'{param}' {must}.", param=param)


def _within(param: str, value: float, low: float, high: float) -> None:
    # not a number compares as False; a whole number may be too large to become a float
    _check(low <= value <= high, param, f"must be between {low} and {high}")


def _check_text(body: Body, endpoint: str, limits: Limits) -> None:
    chat = endpoint != COMPLETIONS
    if chat:
        _check(body.prompt is None, "prompt", "belongs to /v1/completions, not to chat")
        messages = body.messages or ()
        _check(bool(messages), "messages", "must have at least one message")
        _check(
            len(messages) <= limits.messages_count,
            "messages",
            f"may have at most {limits.messages_count} messages",
        )
        names = [message.name for message in messages if message.name is not None]
        for name in names:
            _check(
                1 <= len(name) <= NAME_CHARS_MAX,
                "messages",
                f"may have names of 1 to {NAME_CHARS_MAX} characters",
            )
        texts: Sequence[str] = [message.content for message in messages] + names
    else:
        _check(body.messages is None, "messages", "belongs to /v1/chat/completions")
        _check(bool(body.prompt), "prompt", "must be a text of at least one character")
        texts = [body.prompt or ""]
    param = "messages" if chat else "prompt"
    size = 0
    for text in texts:
        try:
            size += len(text.encode())
        except UnicodeEncodeError:
            _check(False, param, "has a lone surrogate, which is not text")
    _check(size <= limits.text_bytes, param, f"may have at most {limits.text_bytes} bytes of text")


def _check_stop(stop: Sequence[str], limits: Limits) -> None:
    _check(len(stop) <= limits.stop_count, "stop", f"may have at most {limits.stop_count} strings")
    for text in stop:
        _check(
            1 <= len(text) <= limits.stop_chars,
            "stop",
            f"strings must have 1 to {limits.stop_chars} characters",
        )


def _check_bias(bias: Mapping[str, float] | None, limits: Limits) -> None:
    if bias is None:
        return
    _check(
        len(bias) <= limits.logit_bias_count,
        "logit_bias",
        f"may have at most {limits.logit_bias_count} entries",
    )
    for token, value in bias.items():
        _check(token.isascii() and token.isdigit(), "logit_bias", "keys must be token ids")
        _within("logit_bias", value, -100, 100)


def _check_format(wanted: ResponseFormat, limits: Limits) -> None:
    if wanted.type == "json_object":
        _check(wanted.schema is None, "response_format", "of type json_object takes no schema")
        return
    _check(wanted.schema is not None, "response_format", "of type json_schema needs a schema")
    _check_tree(wanted.schema, "response_format", limits.schema_depth, limits.schema_bytes)


def _check_tree(root: Any, param: str, depth_max: int, bytes_max: int) -> None:
    """Depth and estimated size of JSON, walked without recursion."""
    nodes: list[tuple[Any, int]] = [(root, 1)]
    size = 0
    while nodes:
        node, depth = nodes.pop()
        _check(depth <= depth_max, param, f"schema may be at most {depth_max} levels deep")
        children: list[Any] = []
        if isinstance(node, dict):
            size += sum(len(name) for name in node)
            children = list(node.values())
        elif isinstance(node, list):
            children = node
        elif isinstance(node, str):
            size += len(node)
        size += 2 + len(children)
        _check(size <= bytes_max, param, f"schema may have at most {bytes_max} bytes")
        nodes.extend((child, depth + 1) for child in children)
