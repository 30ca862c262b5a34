"""Headers of a request, as they may come: of those that come twice the first counts."""

import json

import pytest

from tests.fake_pipeline import MODEL, FakePipeline, client

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps({"endpoint": "/v1/chat/completions", "body": CHAT}).encode()
PATH = "/v1/requests"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 202),
        ('Application/JSON; Charset="UTF-8"', 202),
        (" application/json ;charset=utf8", 202),
        ("application/json;", 202),
        ("application/json; charset=latin-1", 415),
        ("application/jsonp", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
async def test_content_types(content_type: str, status: int) -> None:
    async with client(FakePipeline()) as http:
        found = await http.post(PATH, content=BODY, headers={"Content-Type": content_type})
    assert found.status_code == status


async def test_the_first_of_two_counts() -> None:
    pipeline = FakePipeline()
    twice = [
        ("Idempotency-Key", "first"),
        ("Idempotency-Key", "second"),
        ("Prefer", "inferlog=attach"),
        ("Prefer", "inferlog=resumable"),
        ("Content-Type", "application/json"),
        ("Content-Type", "text/plain"),
    ]
    async with client(pipeline) as http:
        found = await http.post(PATH, content=BODY, headers=twice)
    assert found.status_code == 202
    (key,) = pipeline.keys
    assert key is not None
    assert (key.key, key.attach) == ("first", True)
