"""Whatever is wrong with a response's body is told exactly, and no record is written for it."""

from typing import Any

import pytest

from schemas.requests import RESPONSES
from tests.fake_pipeline import MODEL, REQUEST_ID, FakePipeline, client, finished, tokens

PATH = "/v1/responses"
SECRET = "the-prompt-nobody-may-see"


def json_format(**fields: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "name": "it", "schema": {}, **fields}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


NEED_MESSAGES = "'input' must be a text or a list of messages."
NO_MEMORY = "earlier turns are not kept: send them in 'input'."
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "'model' is missing: name one of GET /v1/models."),
    ({"model": 5}, "model", "'model' must be a text."),
    ({"input": None}, "input", NEED_MESSAGES),
    ({"input": []}, "input", NEED_MESSAGES),
    ({"input": {"role": "user"}}, "input", NEED_MESSAGES),
    ({"input": ["x"]}, "input[0]", "'input[0]' must be an object."),
    (
        {"input": [{"type": "item_reference", "id": "x"}]},
        "input[0].type",
        "'input[0].type': only messages are supported.",
    ),
    (
        {"input": [{"role": "tool", "content": "x"}]},
        "input[0].role",
        "'input[0].role' must be one of system, developer, user, assistant.",
    ),
    (
        {"input": [{"role": "user", "content": 5}]},
        "input[0].content",
        "'input[0].content' must be a text or a list of text parts.",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content",
        "'input[0].content': only parts of type input_text are supported.",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content",
        "'input[0].content': a text part must have a text.",
    ),
    (
        {"input": [{"role": "user", "content": "x", "extra": 1}]},
        "input[0].extra",
        "Unknown parameter: 'input[0].extra'.",
    ),
    (
        {"input": [{"role": "user", "content": "x"}] * 1025},
        "input",
        "'input' may have at most 1024 messages.",
    ),
    ({"input": "x" * 524_289}, "input", "'input' may have at most 524288 bytes of text."),
    ({"instructions": 5}, "instructions", "'instructions' must be a text."),
    (
        {"max_output_tokens": 0},
        "max_output_tokens",
        "'max_output_tokens' must be between 1 and 131072.",
    ),
    (
        {"max_output_tokens": "5"},
        "max_output_tokens",
        "'max_output_tokens' must be an integer.",
    ),
    ({"temperature": 2.1}, "temperature", "'temperature' must be between 0 and 2."),
    ({"top_p": 0}, "top_p", "'top_p' must be greater than 0."),
    ({"stream": "yes"}, "stream", "'stream' must be true or false."),
    ({"store": 1}, "store", "'store' must be true or false."),
    (
        {"store": False, "background": True},
        "background",
        "'background' needs 'store': its answer must be fetched.",
    ),
    (
        {"service_tier": "gold"},
        "service_tier",
        "'service_tier' must be one of auto, default, flex, priority.",
    ),
    (
        {"metadata": {"a": "x" * 513}},
        "metadata",
        "'metadata' values must be texts of at most 512 characters.",
    ),
    (
        {"metadata": {"a" * 513: "x"}},
        "metadata",
        "'metadata' must map texts to texts of at most 512 characters.",
    ),
    ({"user": "x" * 513}, "user", "'user' must be a text of at most 512 characters."),
    ({"text": "json"}, "text", "'text' must be an object with 'format'."),
    (
        {"text": {"verbosity": "low"}},
        "text.verbosity",
        "'text.verbosity': the models served here have no verbosity.",
    ),
    (
        {"text": {"format": {"type": "xml"}}},
        "text.format",
        "'text.format.type' must be text, json_object or json_schema.",
    ),
    ({"text": json_format(schema=5)}, "text.format", "'text.format.schema' must be an object."),
    (
        {"text": json_format(name="")},
        "text.format",
        "'text.format.name' must be a text of 1 to 64 characters.",
    ),
    ({"text": json_format(x=1)}, "text.format.x", "Unknown parameter: 'text.format.x'."),
    (
        {"text": json_format(schema=nested(17))},
        "text.format",
        "'text.format' schema may be at most 16 levels deep.",
    ),
    (
        {"text": json_format(schema={"a": "x" * 70_000})},
        "text.format",
        "'text.format' schema may have at most 65536 bytes.",
    ),
    (
        {"tools": [{"type": "web_search"}]},
        "tools",
        "'tools': tools are not supported yet.",
    ),
    ({"tool_choice": "required"}, "tool_choice", "'tool_choice' may only be auto or none."),
    ({"tool_choice": {"type": "x"}}, "tool_choice", "'tool_choice' may only be auto or none."),
    ({"truncation": "auto"}, "truncation", "'truncation' may only be disabled."),
    ({"top_logprobs": 3}, "top_logprobs", "'top_logprobs' may only be 0."),
    (
        {"include": ["message.output_text.logprobs"]},
        "include",
        "'include': nothing more than the text of an answer can be included.",
    ),
    ({"previous_response_id": "x"}, "previous_response_id", f"'previous_response_id': {NO_MEMORY}"),
    ({"conversation": "x"}, "conversation", f"'conversation': {NO_MEMORY}"),
    ({"messages": []}, "messages", "Unknown parameter: 'messages'."),
    ({"max_tokens": 5}, "max_tokens", "Unknown parameter: 'max_tokens'."),
    ({"n": 1}, "n", "Unknown parameter: 'n'."),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=lambda it: str(it)[:40])
async def test_a_bad_response_is_told_exactly_and_reaches_no_log(
    fields: dict[str, Any], param: str, message: str
) -> None:
    pipeline = FakePipeline()
    body = {"model": MODEL, "input": SECRET, **fields}
    async with client(pipeline) as http:
        answer = await http.post(PATH, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, message)
    assert SECRET not in answer.text
    assert pipeline.submitted == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "include": [], "reasoning": None, "conversation": None},
        {"tool_choice": "auto", "truncation": "disabled", "top_logprobs": 0},
        {"parallel_tool_calls": True, "prompt_cache_key": "x", "safety_identifier": "y"},
        {"stream_options": {"include_obfuscation": False}, "user": "ann"},
        {"text": {}, "metadata": {}},
    ],
    ids=min,
)
async def test_what_asks_for_nothing_is_let_through(fields: dict[str, Any]) -> None:
    pipeline = FakePipeline(batches=[[tokens(1, text="x", end=True), finished(1)]])
    async with client(pipeline) as http:
        answer = await http.post(PATH, json={"model": MODEL, "input": "hi", **fields})
    assert answer.status_code == 200
    assert pipeline.submitted[0].endpoint == RESPONSES


async def test_what_is_too_long_to_be_repeated_runs_all_the_same() -> None:
    """What a response repeats stands on the log with each start: it is small."""
    pipeline = FakePipeline(batches=[[tokens(1, text="x", end=True), finished(1)]])
    schema = {"description": "x" * 9000}
    body = {
        "model": MODEL,
        "input": "hi",
        "instructions": "i" * 9000,
        "text": json_format(schema=schema),
    }
    async with client(pipeline) as http:
        assert (await http.post(PATH, json=body)).status_code == 200
    draft = pipeline.submitted[0]
    assert draft.body.messages is not None
    assert [len(it.content) for it in draft.body.messages] == [9000, 2]
    assert draft.body.response_format is not None
    assert draft.body.response_format.schema == schema
    assert draft.response is not None
    assert (draft.response.instructions, draft.response.text_format) == (None, {})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PATH}/{REQUEST_ID}"),
        ("GET", f"{PATH}/resp_{REQUEST_ID}?stream=true"),
        ("POST", f"{PATH}/{REQUEST_ID}/cancel"),
        ("DELETE", f"{PATH}/{REQUEST_ID}"),
        ("GET", f"{PATH}/abc"),
        ("DELETE", f"{PATH}/resp_"),
    ],
)
async def test_a_completion_is_no_response(method: str, path: str) -> None:
    pipeline = FakePipeline()  # its one request is a completion
    async with client(pipeline) as http:
        answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (pipeline.cancelled, pipeline.deleted) == ([], set())
