"""The engine as the worker sees it: start runs, get outputs by step, abort.

The engine decides which tokens run; the scheduler decides which request enters. A run may go on from
tokens that an earlier run logged; the two together must read as one answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.errors import InferlogError
from schemas.replies import ErrorInfo, FinishReason, TokenLogprob
from schemas.requests import Body, Endpoint


@dataclass(frozen=True, slots=True)
class Logged:
    """What the log holds of one choice: its tokens, the text made visible, and whether it ended."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One start of one request on the engine. `run_id` is unique in the process.

    `logged` has one entry per choice (n of them), or is empty for a run from the beginning.
    `cache_salt` separates the prefix caches of tenants.
    """

    run_id: int
    request_id: str
    model: str
    endpoint: Endpoint
    body: Body
    logged: tuple[Logged, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one choice of a run: new tokens, the text they made visible.

    Tokens and texts are deltas, in order. `finish_reason` ends the choice (tokens may be empty
    then). Text is withheld while it may be the beginning of a stop string or half a character.
    """

    run_id: int
    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The last report of a run; every choice has finished, or `error` says why not.

    `prompt_tokens` counts the prompt alone (not logged tokens that were given back to the engine).
    """

    run_id: int
    prompt_tokens: int
    cached_tokens: int
    error: ErrorInfo | None = None


Report = Output | RunEnded
ReportHandler = Callable[[Sequence[Report]], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that this engine serves."""

    name: str
    context_tokens: int


class EngineDied(InferlogError):
    """The engine is gone with everything it ran; only a new engine helps."""


class Engine(Protocol):
    """One engine in the worker's process (or beside it).

    All methods are called from one event loop; reports arrive on the same loop, all reports of one
    step in one call, never after the run's `RunEnded`, never after `abort` of that run returned.
    """

    models: tuple[ModelInfo, ...]
    slots: int

    async def start(self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]) -> None:
        """Loads the model; returns when it can run. Raises EngineDied with a clear reason."""
        ...

    def submit(self, run: Run) -> None:
        """Takes a run; never blocks, never raises for a bad request: `RunEnded.error` says so.

        Finish conditions are checked first: a run whose logged tokens already end it (max_tokens,
        end token, stop string) reports its finish with no new token.
        """
        ...

    def abort(self, run_id: int) -> None:
        """Frees the slot of a run; no more reports of it. Unknown or ended runs are ignored."""
        ...

    async def stop(self) -> None:
        """Ends everything it started, child processes too. Idempotent."""
        ...

    def step_seconds(self) -> float | None:
        """How long the latest step took; None if the engine does not say."""
        ...


