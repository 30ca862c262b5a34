"""The bodies that clients send, as OpenAI defines them, and their JSON Schemas for the docs.

Decoded straight from bytes. Every known parameter is a field, also those that are refused, so that
a refusal can say why; anything else is an unknown parameter.
"""

from typing import Any

import msgspec


class Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of what clients send: a misspelt field is refused, never ignored."""


class ContentPart(Public, frozen=True):
    """A part of a message's content. Only `type: text` is run."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class ChatMessage(Public, frozen=True):
    """One message. What an earlier answer carried beside its text may be null, not set."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None


class StreamOptions(Public, frozen=True):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(Public, frozen=True):
    """The schema an answer has to follow."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class PublicFormat(Public, frozen=True):
    """`type` is text, json_object or json_schema."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class Sampling(Public, frozen=True, kw_only=True):
    """What chat and completion share. `None` is OpenAI's default."""

    model: str
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    service_tier: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    prompt_logprobs: Any = None


class ChatBody(Sampling, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: PublicFormat | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    audio: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionBody(Sampling, frozen=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | list[Any]
    logprobs: int | None = None
    best_of: int | None = None
    echo: Any = None
    suffix: Any = None


class BackgroundBody(Public, frozen=True):
    """The body of `POST /v1/requests`: an endpoint, and the body it would be sent."""

    endpoint: str
    body: msgspec.Raw


_REF = "#/components/schemas/{name}"


def schemas() -> dict[str, Any]:
    """JSON Schemas of all bodies, by name, for the OpenAPI document."""
    _, components = msgspec.json.schema_components([ChatBody, CompletionBody], ref_template=_REF)
    components["BackgroundBody"] = {
        "title": "BackgroundBody",
        "type": "object",
        "description": BackgroundBody.__doc__,
        "required": ["endpoint", "body"],
        "additionalProperties": False,
        "properties": {
            "endpoint": {"enum": ["/v1/chat/completions", "/v1/completions"]},
            "body": {
                "anyOf": [
                    {"$ref": _REF.format(name="ChatBody")},
                    {"$ref": _REF.format(name="CompletionBody")},
                ]
            },
        },
    }
    return components
