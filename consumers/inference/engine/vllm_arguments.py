"""What a resumed run's two halves say to each other through `SamplingParams.extra_args`.

Imports nothing of vLLM, whose settings read it before vLLM may be imported.
"""

from dataclasses import asdict, dataclass
from typing import Any

CONTINUATION = "inferlog_continuation"
"""The key in `extra_args`. Clients cannot set it: they have no `extra_args`."""

PROCESSOR = "consumers.inference.engine.vllm_continuation:Continuation"
"""The import path by which vLLM finds the half in its own process."""


@dataclass(frozen=True, slots=True)
class Continued:
    """How a run goes on. `logged`: how many tokens at the end of the prompt are earlier output.

    `grammar`: the JSON schema that the whole answer follows.
    """

    logged: int
    presence: float = 0.0
    frequency: float = 0.0
    grammar: str | None = None

    def to_argument(self) -> dict[str, Any]:
        """As vLLM's messages carry it."""
        return asdict(self)

    @classmethod
    def from_argument(cls, found: dict[str, Any]) -> "Continued":
        """The reverse."""
        return cls(**found)
