"""What the scripted engine must answer to a body, computed from its documentation alone."""

from dataclasses import dataclass
from hashlib import sha256

from schemas.requests import Body

TOKENS_DEFAULT = 16


@dataclass(frozen=True, slots=True)
class Expected:
    """The whole answer of one choice; every choice of a request is the same."""

    tokens: int
    text: str
    finish_reason: str
    prompt_tokens: int
    longest: str
    """The text before stop strings cut it."""


def expected_answer(body: Body) -> Expected:
    """Token i is `a1b2c3.i `, with the first six hex digits of the prompt's SHA-256."""
    if body.messages is not None:
        prompt = "\n".join(message.content for message in body.messages)
    else:
        prompt = body.prompt or ""
    prefix = sha256(prompt.encode()).hexdigest()[:6]
    count = body.max_tokens or TOKENS_DEFAULT
    pieces = [f"{prefix}.{i} " for i in range(count)]
    text = "".join(pieces)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in body.stop if stop in text]
    words = len(prompt.split())
    if not found:
        return Expected(count, text, "length", words, text)
    end, start = min(found)
    length, tokens = 0, 0
    while length < end:
        length += len(pieces[tokens])
        tokens += 1
    return Expected(tokens, text[:start], "stop", words, text)
