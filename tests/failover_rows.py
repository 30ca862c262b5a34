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
JSON = "A person as JSON:"
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


_SCHEMA = {"response_format": ResponseFormat(type="json_schema", schema=PERSON)}
_OBJECT = {"response_format": ResponseFormat(type="json_object")}

EXACT: dict[str, Row] = {
    "greedy": Row(step=3),  # at every cut in the contract suite, as `stop`
    "stop": Row(step=3, fields={"stop": ("located in", "the city")}),
    "presence_penalty": Row(REPEATING, 22, 6, {"presence_penalty": 1.5}),
    "frequency_penalty": Row(REPEATING, 22, 6, {"frequency_penalty": 0.8}),
    "negative_penalties": Row(FACTS, 18, 5, {"presence_penalty": -1.0, "frequency_penalty": -0.5}),
    "logit_bias": Row(step=3, fields={"logit_bias": {"28": 3.0, "30": -100.0}}),
    "logprobs": Row(step=3, fields={"logprobs": 3}),
    "json_schema": Row(JSON, 40, 2, _SCHEMA),
    "json_object": Row(REPEATING, 16, 4, _OBJECT),
    "json_schema_logprobs": Row(JSON, 40, 7, _SCHEMA | {"logprobs": 1}),
    "json_object_penalties": Row(REPEATING, 20, 4, _OBJECT | {"frequency_penalty": 1.2}),
    "n": Row(REPEATING, 14, 5, {"n": 2, "presence_penalty": 1.5}),
    "max_tokens": Row(max_tokens=3),
}
"""Greedy: with float32, the answer is the uninterrupted one, token by token."""

DRAWN: dict[str, Row] = {
    "temperature": Row(fields={"temperature": 1.2}),
    "top_p": Row(fields={"temperature": 1.2, "top_p": 0.5}),
    "seed": Row(fields={"temperature": 1.2, "seed": 7}),
}
"""Drawn by chance: the answer goes on, and with a seed goes on the same each time."""
