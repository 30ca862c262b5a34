"""One start of one request on an engine: what goes in, and what comes out step by step."""

from dataclasses import dataclass
from typing import Literal, get_args

from schemas.replies import ErrorInfo, FinishReason, TokenLogprob
from schemas.requests import Body, Endpoint

Feature = Literal["penalties", "response_format"]
"""What of a request looks at the tokens already given: a resumed run must know which they were."""

FEATURES: frozenset[Feature] = frozenset(get_args(Feature))


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
    """What one step gave one choice of a run: new tokens, and the text they made visible.

    Tokens and texts are deltas, in order. An output without tokens has a `finish_reason`, which
    ends the choice. Text is withheld while it may be the beginning of a stop string or half a
    character.
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
