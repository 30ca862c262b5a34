"""Whatever is wrong with a request is told exactly, and no record is written for it."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.limits import DEFAULT_LIMITS
from tests.fake_pipeline import MODEL, FakePipeline, client

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BACKGROUND = "/v1/requests"
SECRET = "the-prompt-nobody-may-see"
LIMITS = DEFAULT_LIMITS


@dataclass(frozen=True)
class Row:
    """One bad request. `json_body` or raw `content` is sent; `param` is checked as well."""

    name: str
    status: int
    message: str
    param: str | None = None
    path: str = CHAT
    json_body: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], **fields}
    return {name: value for name, value in body.items() if value is not ...}


def text(**fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": SECRET, **fields}
    return {name: value for name, value in body.items() if value is not ...}


def messages(message: Any) -> dict[str, Any]:
    return chat(messages=[message])


def nested(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"properties": {"a": value}}
    return value


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": value}}


def c(name: str, message: str, param: str | None = None, status: int = 400, **fields: Any) -> Row:
    """A chat body with some fields changed; `...` leaves one out."""
    return Row(name, status, message, param, CHAT, chat(**fields))


def t(name: str, message: str, param: str | None = None, status: int = 400, **fields: Any) -> Row:
    """The same for a completion."""
    return Row(name, status, message, param, TEXT, text(**fields))


def raw(name: str, message: str, content: bytes, param: str | None = None) -> Row:
    return Row(name, 400, message, param, content=content)


ROWS: list[Row] = [
    # what is not JSON, or not a JSON object
    raw("no body", "The body is not valid JSON in UTF-8.", b""),
    raw("not JSON", "The body is not valid JSON in UTF-8.", b"{model: scripted}"),
    raw(
        "cut off",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scripted", "messages": [{"role',
    ),
    raw("two values", "The body is not valid JSON in UTF-8.", json.dumps(chat()).encode() + b"{}"),
    raw("an array", "The body must be a JSON object.", b"[]"),
    raw("a string", "The body must be a JSON object.", b'"hello"'),
    raw(
        "NaN",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scripted", "prompt": "x", "temperature": NaN}',
    ),
    raw(
        "Infinity",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scripted", "prompt": "x", "temperature": Infinity}',
    ),
    raw("not UTF-8", "The body is not valid JSON in UTF-8.", b'{"model": "\xff"}'),
    raw("UTF-16", "The body is not valid JSON in UTF-8.", json.dumps(chat()).encode("utf-16")),
    raw(
        "a byte order mark",
        "The body is not valid JSON in UTF-8.",
        b"\xef\xbb\xbf" + json.dumps(chat()).encode(),
    ),
    raw(
        "a lone surrogate",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ),
    raw(
        "a control character in a string",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scr\x01pted"}',
    ),
    raw(
        "too deep",
        "The body may be at most 32 levels deep.",
        b'{"model": "scripted", "metadata": ' + b"[" * 40 + b"]" * 40 + b"}",
    ),
    raw("far too deep", "The body may be at most 32 levels deep.", b"[" * 100_000),
    raw(
        "too deep behind brackets in a text",
        "The body may be at most 32 levels deep.",
        b'{"user": "[[[[", "x": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
    ),
    # names
    c("an unknown parameter", "Unknown parameter: 'temprature'.", "temprature", temprature=1),
    c(
        "an unknown parameter of another endpoint",
        "Unknown parameter: 'prompt'.",
        "prompt",
        prompt="x",
    ),
    t("the same for completions", "Unknown parameter: 'messages'.", "messages", messages=[]),
    c(
        "a very long name",
        "Unknown parameter: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'.",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        **{"x" * 500: 1},
    ),
    c("no model", "'model' is missing: name one of GET /v1/models.", "model", model=...),
    c("a model that is no text", "'model' must be a text.", "model", model=5),
    c("a model without a name", "There is no such model.", "model", 404, model=""),
    c("a model nobody knows", "There is no such model.", "model", 404, model="gpt-7"),
    # messages
    c("no messages", "'messages' must be a list of messages.", "messages", messages=...),
    c(
        "an empty list of messages",
        "'messages' must have at least one message.",
        "messages",
        messages=[],
    ),
    c(
        "messages that are no list",
        "'messages' must be a list of messages.",
        "messages",
        messages="hello",
    ),
    c(
        "messages that are null",
        "'messages' must be a list of messages.",
        "messages",
        messages=None,
    ),
    Row(
        "a message that is no object",
        400,
        "'messages[0]' must be an object.",
        "messages[0]",
        json_body=messages("hello"),
    ),
    Row(
        "a message without a role",
        400,
        "'messages[0].role' must be one of system, developer, user, assistant.",
        "messages[0].role",
        json_body=messages({"content": SECRET}),
    ),
    Row(
        "an unknown role",
        400,
        "'messages[0].role' must be one of system, developer, user, assistant.",
        "messages[0].role",
        json_body=messages({"role": "robot", "content": SECRET}),
    ),
    Row(
        "a tool's message",
        400,
        "'messages[0].role' must be one of system, developer, user, assistant.",
        "messages[0].role",
        json_body=messages({"role": "tool", "content": SECRET, "tool_call_id": "1"}),
    ),
    Row(
        "a message without content",
        400,
        "'messages[0].content' must be a text or a list of text parts.",
        "messages[0].content",
        json_body=messages({"role": "user"}),
    ),
    Row(
        "content that is a number",
        400,
        "'messages[0].content' must be a text or a list of text parts.",
        "messages[0].content",
        json_body=messages({"role": "user", "content": 5}),
    ),
    Row(
        "an image",
        400,
        "'messages[0].content': only parts of type text are supported.",
        "messages[0].content",
        json_body=messages(
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}],
            }
        ),
    ),
    Row(
        "a text part without text",
        400,
        "'messages[0].content': a text part must have a text.",
        "messages[0].content",
        json_body=messages({"role": "user", "content": [{"type": "text"}]}),
    ),
    Row(
        "an unknown field of a message",
        400,
        "Unknown parameter: 'messages[0].mood'.",
        "messages[0].mood",
        json_body=messages({"role": "user", "content": SECRET, "mood": 1}),
    ),
    Row(
        "a call of a tool in a message",
        400,
        "Unknown parameter: 'messages[0].tool_calls'.",
        "messages[0].tool_calls",
        json_body=messages({"role": "assistant", "content": SECRET, "tool_calls": [{}]}),
    ),
    Row(
        "a name that is too long",
        400,
        "'messages[0].name' must be a text of at most 64 characters.",
        "messages[0].name",
        json_body=messages({"role": "user", "content": SECRET, "name": "x" * 65}),
    ),
    c(
        "too many messages",
        "'messages' may have at most 1024 messages.",
        "messages",
        messages=[{"role": "user", "content": "x"}] * 1025,
    ),
    c(
        "too much text",
        "'messages' may have at most 524288 bytes of text.",
        "messages",
        messages=[{"role": "user", "content": "x" * (512 * 1024 + 1)}],
    ),
    # prompts
    t("no prompt", "'prompt' must be a text.", "prompt", prompt=...),
    t("an empty prompt", "'prompt' must be a text of at least one character.", "prompt", prompt=""),
    t("a prompt that is a number", "'prompt' must be a text.", "prompt", prompt=5),
    t(
        "a list of prompts",
        "'prompt': a list of prompts is not supported yet.",
        "prompt",
        prompt=["a", "b"],
    ),
    t("token ids", "'prompt': a list of prompts is not supported yet.", "prompt", prompt=[1, 2, 3]),
    t(
        "too long a prompt",
        "'prompt' may have at most 524288 bytes of text.",
        "prompt",
        prompt="x" * (512 * 1024 + 1),
    ),
    # numbers
    c("n of 0", "'n' must be between 1 and 8.", "n", n=0),
    c("n of 9", "'n' must be between 1 and 8.", "n", n=9),
    c("a huge n", "'n' must be between 1 and 8.", "n", n=10**30),
    c("n as text", "'n' must be an integer.", "n", n="2"),
    c("n as a fraction", "'n' must be an integer.", "n", n=1.5),
    c("n as a boolean", "'n' must be an integer.", "n", n=True),
    c("max_tokens of 0", "'max_tokens' must be between 1 and 131072.", "max_tokens", max_tokens=0),
    c(
        "a negative max_tokens",
        "'max_tokens' must be between 1 and 131072.",
        "max_tokens",
        max_tokens=-1,
    ),
    c(
        "too many max_tokens",
        "'max_tokens' must be between 1 and 131072.",
        "max_tokens",
        max_tokens=131_073,
    ),
    c(
        "max_completion_tokens of 0",
        "'max_tokens' must be between 1 and 131072.",
        "max_tokens",
        max_completion_tokens=0,
    ),
    c(
        "two different max_tokens",
        "'max_tokens' and 'max_completion_tokens' must agree; give only one.",
        "max_tokens",
        max_tokens=5,
        max_completion_tokens=6,
    ),
    c(
        "a negative temperature",
        "'temperature' must be between 0 and 2.",
        "temperature",
        temperature=-0.1,
    ),
    c(
        "a high temperature",
        "'temperature' must be between 0 and 2.",
        "temperature",
        temperature=2.1,
    ),
    c("temperature as text", "'temperature' must be a number.", "temperature", temperature="hot"),
    c("top_p of 0", "'top_p' must be greater than 0.", "top_p", top_p=0),
    c("a high top_p", "'top_p' must be between 0 and 1.", "top_p", top_p=1.1),
    c(
        "a high presence_penalty",
        "'presence_penalty' must be between -2 and 2.",
        "presence_penalty",
        presence_penalty=2.5,
    ),
    c(
        "a low frequency_penalty",
        "'frequency_penalty' must be between -2 and 2.",
        "frequency_penalty",
        frequency_penalty=-2.5,
    ),
    c(
        "a seed beyond 64 bits",
        "'seed' must be between -9223372036854775808 and 9223372036854775807.",
        "seed",
        seed=2**63,
    ),
    c("a seed that is a fraction", "'seed' must be an integer.", "seed", seed=0.5),
    raw(
        "a number beyond all numbers",
        "The body is not valid JSON in UTF-8.",
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ),
    # stop, logprobs, logit_bias
    c("an empty stop string", "'stop' strings must have 1 to 256 characters.", "stop", stop=""),
    c("too many stop strings", "'stop' may have at most 16 strings.", "stop", stop=["x"] * 17),
    c(
        "too long a stop string",
        "'stop' strings must have 1 to 256 characters.",
        "stop",
        stop="x" * 257,
    ),
    c("a stop that is a number", "'stop' must be a text or a list of texts.", "stop", stop=5),
    c(
        "stop strings that are numbers",
        "'stop' must be a text or a list of texts.",
        "stop",
        stop=[5],
    ),
    c("logprobs that are a number", "'logprobs' must be true or false.", "logprobs", logprobs=5),
    c(
        "top_logprobs alone",
        "'top_logprobs' needs 'logprobs': true.",
        "top_logprobs",
        top_logprobs=2,
    ),
    c(
        "too many top_logprobs",
        "'logprobs' must be between 0 and 20.",
        "logprobs",
        logprobs=True,
        top_logprobs=21,
    ),
    t("too many logprobs", "'logprobs' must be between 0 and 20.", "logprobs", logprobs=21),
    t("logprobs that are a boolean", "'logprobs' must be an integer.", "logprobs", logprobs=True),
    c(
        "a logit_bias that is a list",
        "'logit_bias' must map token ids to numbers.",
        "logit_bias",
        logit_bias=[1],
    ),
    c(
        "a logit_bias of a word",
        "'logit_bias' keys must be token ids.",
        "logit_bias",
        logit_bias={"hello": 1},
    ),
    c(
        "a high logit_bias",
        "'logit_bias' must be between -100 and 100.",
        "logit_bias",
        logit_bias={"5": 101},
    ),
    c(
        "a logit_bias that is text",
        "'logit_bias' must map token ids to numbers.",
        "logit_bias",
        logit_bias={"5": "x"},
    ),
    c(
        "too many entries of logit_bias",
        "'logit_bias' may have at most 1024 entries.",
        "logit_bias",
        logit_bias={str(i): 1 for i in range(1025)},
    ),
    # guided decoding
    c(
        "a response_format that is text",
        "'response_format.type' must be text, json_object or json_schema.",
        "response_format",
        response_format="json",
    ),
    c(
        "an unknown response_format",
        "'response_format.type' must be text, json_object or json_schema.",
        "response_format",
        response_format={"type": "xml"},
    ),
    c(
        "a schema that is missing",
        "'response_format.json_schema.schema' must be an object.",
        "response_format",
        response_format={"type": "json_schema"},
    ),
    c(
        "a schema that is text",
        "'response_format.json_schema.schema' must be an object.",
        "response_format",
        response_format=schema("x"),
    ),
    c(
        "a deep schema",
        "'response_format' schema may be at most 16 levels deep.",
        "response_format",
        response_format=schema(nested(12)),
    ),
    c(
        "a large schema",
        "'response_format' schema may have at most 65536 bytes.",
        "response_format",
        response_format=schema({"enum": ["x" * 1000] * 70}),
    ),
    # streams, tiers, what is accepted without effect
    c("stream as text", "'stream' must be true or false.", "stream", stream="yes"),
    c(
        "stream_options without stream",
        "'stream_options' needs 'stream': true.",
        "stream_options",
        stream_options={"include_usage": True},
    ),
    c(
        "unknown stream_options",
        "'stream_options' may have include_usage alone.",
        "stream_options",
        stream=True,
        stream_options={"x": 1},
    ),
    c(
        "include_usage as text",
        "'stream_options.include_usage' must be true or false.",
        "stream_options",
        stream=True,
        stream_options={"include_usage": "yes"},
    ),
    c(
        "an unknown service_tier",
        "'service_tier' must be one of auto, default, flex, priority.",
        "service_tier",
        service_tier="gold",
    ),
    c(
        "too long a user",
        "'user' must be a text of at most 512 characters.",
        "user",
        user="x" * 513,
    ),
    c(
        "a user that is a number",
        "'user' must be a text of at most 512 characters.",
        "user",
        user=5,
    ),
    c(
        "too many metadata",
        "'metadata' must be at most 16 pairs.",
        "metadata",
        metadata={str(i): "x" for i in range(17)},
    ),
    c(
        "too long metadata",
        "'metadata' values must be texts of at most 512 characters.",
        "metadata",
        metadata={"a": "x" * 513},
    ),
    c(
        "metadata that is a number",
        "'metadata' values must be texts of at most 512 characters.",
        "metadata",
        metadata={"a": 5},
    ),
    # refused with a reason
    c(
        "tools",
        "'tools': tools are not supported yet.",
        "tools",
        tools=[{"type": "function", "function": {"name": "f"}}],
    ),
    c(
        "functions",
        "'functions': functions are not supported; tools are not supported yet.",
        "functions",
        functions=[{"name": "f"}],
    ),
    c("audio", "'modalities': only text is supported.", "modalities", modalities=["audio"]),
    c(
        "a prediction",
        "'prediction': predicted outputs are not supported.",
        "prediction",
        prediction={"type": "content", "content": "x"},
    ),
    c(
        "a chat template",
        "'chat_template': the template is the operator's, never the client's.",
        "chat_template",
        chat_template="{{ x }}",
    ),
    c(
        "arguments of a chat template",
        "'chat_template_kwargs': the template is the operator's, never the client's.",
        "chat_template_kwargs",
        chat_template_kwargs={"tokenize": True},
    ),
    c(
        "a search of the web",
        "'web_search_options': this service does not reach the web.",
        "web_search_options",
        web_search_options={},
    ),
    c(
        "reasoning_effort",
        "'reasoning_effort': the models served here have no reasoning effort.",
        "reasoning_effort",
        reasoning_effort="high",
    ),
    t("best_of beyond n", "'best_of' must equal 'n'.", "best_of", best_of=3),
    t("echo", "'echo' is not supported.", "echo", echo=True),
    t("a suffix", "'suffix' is not supported.", "suffix", suffix="end"),
    # headers
    Row(
        "a form",
        415,
        "Send the body as application/json, in UTF-8.",
        None,
        content=b"a=b",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    Row(
        "another charset",
        415,
        "Send the body as application/json, in UTF-8.",
        None,
        json_body=chat(),
        headers={"Content-Type": "application/json; charset=utf-16"},
    ),
    Row(
        "a compressed body",
        415,
        "Send the body without a content encoding.",
        None,
        json_body=chat(),
        headers={"Content-Encoding": "gzip"},
    ),
    Row(
        "a timeout of words",
        400,
        "'Inferlog-Timeout' must be a positive number of seconds.",
        "Inferlog-Timeout",
        json_body=chat(),
        headers={"Inferlog-Timeout": "soon"},
    ),
    Row(
        "a negative timeout",
        400,
        "'Inferlog-Timeout' must be a positive number of seconds.",
        "Inferlog-Timeout",
        json_body=chat(),
        headers={"Inferlog-Timeout": "-1"},
    ),
    Row(
        "a timeout that is no number",
        400,
        "'Inferlog-Timeout' must be a positive number of seconds.",
        "Inferlog-Timeout",
        json_body=chat(),
        headers={"Inferlog-Timeout": "nan"},
    ),
    Row(
        "an empty key",
        400,
        "'Idempotency-Key' must have 1 to 255 printable characters.",
        "Idempotency-Key",
        json_body=chat(),
        headers={"Idempotency-Key": '""'},
    ),
    Row(
        "a long key",
        400,
        "'Idempotency-Key' must have 1 to 255 printable characters.",
        "Idempotency-Key",
        json_body=chat(),
        headers={"Idempotency-Key": "k" * 256},
    ),
    Row(
        "too many headers",
        431,
        "At most 100 headers of 32768 bytes together.",
        None,
        json_body=chat(),
        headers={f"X-{i}": "x" for i in range(100)},
    ),
    Row(
        "too large headers",
        431,
        "At most 100 headers of 32768 bytes together.",
        None,
        json_body=chat(),
        headers={"X-Large": "x" * 33_000},
    ),
    Row(
        "no key",
        401,
        "No valid API key: send `Authorization: Bearer <key>`.",
        None,
        json_body=chat(),
        headers={"Authorization": ""},
    ),
    Row(
        "a wrong key",
        401,
        "No valid API key: send `Authorization: Bearer <key>`.",
        None,
        json_body=chat(),
        headers={"Authorization": "Bearer nobody"},
    ),
    # sizes, paths, methods
    Row(
        "too large a body",
        413,
        "A request body may have at most 1048576 bytes.",
        None,
        content=b" " * (1024 * 1024 + 1),
    ),
    Row("an unknown path", 404, "No such route.", None, path="/v1/nothing", json_body={}),
    Row(
        "a slash too many",
        404,
        "No such route.",
        None,
        path="/v1/chat/completions/",
        json_body=chat(),
    ),
    Row("a wrong method", 405, "This method is not allowed here.", None, method="DELETE"),
    Row(
        "a request of no form",
        404,
        "There is no such request.",
        None,
        path="/v1/requests/abc",
        method="GET",
    ),
    Row(
        "a position of words",
        400,
        "'Last-Event-ID' and 'starting_after' are the id of an event of this stream.",
        "starting_after",
        path="/v1/requests/01900000-0000-7000-8000-000000000001/stream?starting_after=x",
        method="GET",
    ),
    # the background route
    Row(
        "no endpoint",
        400,
        "'endpoint' must be /v1/chat/completions, /v1/completions or /v1/responses.",
        "endpoint",
        BACKGROUND,
        {"body": chat()},
    ),
    Row(
        "an endpoint of others",
        400,
        "'endpoint' must be /v1/chat/completions, /v1/completions or /v1/responses.",
        "endpoint",
        BACKGROUND,
        {"endpoint": "/v1/embeddings", "body": chat()},
    ),
    Row("no body inside", 400, "'body' must be an object.", "body", BACKGROUND, {"endpoint": CHAT}),
    Row(
        "a body inside that is text",
        400,
        "'body' must be an object.",
        "body",
        BACKGROUND,
        {"endpoint": CHAT, "body": "x"},
    ),
    Row(
        "an unknown field beside it",
        400,
        "Unknown parameter: 'x'.",
        "x",
        BACKGROUND,
        {"endpoint": CHAT, "body": chat(), "x": 1},
    ),
    Row(
        "a bad parameter inside",
        400,
        "'n' must be between 1 and 8.",
        "n",
        BACKGROUND,
        {"endpoint": CHAT, "body": chat(n=9)},
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_bad_input_is_told_exactly_and_reaches_no_log(row: Row) -> None:
    pipeline = FakePipeline()
    headers = {"Content-Type": "application/json", **row.headers}
    content = row.content if row.json_body is None else json.dumps(row.json_body).encode()
    async with client(pipeline) as http:
        answer = await http.request(row.method, row.path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["message"], error["param"]) == (
        row.status,
        row.message,
        row.param,
    )
    assert set(error) == {"message", "type", "param", "code"}
    assert SECRET not in answer.text
    assert answer.headers["x-request-id"]
    assert pipeline.submitted == []
