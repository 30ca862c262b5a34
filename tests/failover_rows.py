"""Requests whose answers are cut at many places: one for each feature that must survive the cut.

`docs/failover-table.md` has a row for each of them.
"""

from dataclasses import dataclass, field
from typing import Any

from schemas.requests import Body, ResponseFormat

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FACTS = "The capital of France is"
REPEATING = "a b a b a b a b"


@dataclass(frozen=True)
class Row:
    """A greedy request. `step`: every how many tokens its answer is cut."""

    prompt: str = FACTS
    max_tokens: int = 12
    step: int = 1
    fields: dict[str, Any] = field(default_factory=dict)

    def body(self, **more: Any) -> Body:
        given: dict[str, Any] = {"prompt": self.prompt, "max_tokens": self.max_tokens}
        return Body(**given | {"temperature": 0.0} | self.fields | more)


EXACT: dict[str, Row] = {
    "greedy": Row(),
    "stop": Row(fields={"stop": ("located in", "the city")}),
    "presence_penalty": Row(REPEATING, 24, 3, {"presence_penalty": 1.5}),
    "frequency_penalty": Row(REPEATING, 24, 3, {"frequency_penalty": 0.8}),
    "negative_penalties": Row(FACTS, 20, 4, {"presence_penalty": -1.0, "frequency_penalty": -0.5}),
    "logit_bias": Row(fields={"logit_bias": {"28": 3.0, "30": -100.0}}),
    "logprobs": Row(fields={"logprobs": 3}),
    "json_schema": Row(
        "A person as JSON:",
        40,
        fields={"response_format": ResponseFormat(type="json_schema", schema=PERSON)},
    ),
    "json_object": Row(
        "A person as JSON:", 16, 3, {"response_format": ResponseFormat(type="json_object")}
    ),
    "json_schema_logprobs": Row(
        "A person as JSON:",
        40,
        4,
        {"response_format": ResponseFormat(type="json_schema", schema=PERSON), "logprobs": 1},
    ),
    "json_schema_penalties": Row(
        "A person as JSON:",
        40,
        4,
        {
            "response_format": ResponseFormat(type="json_schema", schema=PERSON),
            "frequency_penalty": 0.7,
        },
    ),
    "n": Row(max_tokens=8, step=3, fields={"n": 2, "presence_penalty": 0.5}),
    "max_tokens": Row(max_tokens=3),
}
"""Greedy: with float32, the answer is the uninterrupted one, token by token."""

DRAWN: dict[str, Row] = {
    "temperature": Row(fields={"temperature": 1.2}),
    "top_p": Row(fields={"temperature": 1.2, "top_p": 0.5}),
    "seed": Row(fields={"temperature": 1.2, "seed": 7}),
}
"""Drawn by chance: the answer goes on, and with a seed goes on the same each time."""
