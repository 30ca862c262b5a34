"""One request as its client saw it from outside, and what its answer must be."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stream", "whole", "background", "keyed", "cancelled", "closed"]
KINDS: tuple[Kind, ...] = ("stream", "whole", "background", "keyed", "cancelled", "closed")

POISON = ("it kills its worker", "it kills its engine")
"""Prompts with one of these are what their words say, for the scripted engine of the faults."""
STALLS = "never ends"

NOTHING_APPENDED = {"unavailable", "shutting_down", "no_worker", "too_many_streams"}
"""Refusals that promise that nothing runs."""


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request as its client saw it. Times are of `time.monotonic`.

    `outcome`: ok (the whole answer was read), failed (a documented refusal or error: `error`),
    unknown (the connection broke before an id was told, or the API said so itself).
    """

    number: int
    kind: Kind
    prompt: str
    max_tokens: int
    key: str | None = None
    request_id: str | None = None
    text: str = ""
    position: int = 0
    outcome: Literal["ok", "failed", "unknown"] = "unknown"
    error: str | None = None
    resumes: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    heard_s: float = 0.0
    longest_pause_s: float = 0.0
    """Between two pieces of the answer, whatever happened to connections in between."""

    def expected(self) -> str:
        """The whole answer."""
        return scripted_answer(self.prompt, self.max_tokens)


def scripted_answer(prompt: str, max_tokens: int) -> str:
    """What the scripted engine answers."""
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{index} " for index in range(max_tokens))
