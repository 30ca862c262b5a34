"""Records on `replies`: `Accepted`, `Fence`, and batches of events.

An event speaks for one published copy of a request, its origin: (request partition `q`, `offset`),
under the `epoch` in which its worker owns `q`. `q` is written `topic/partition`.
"""

from typing import Annotated, Literal, final

from msgspec import Meta

from schemas.requests import RequestInfo
from schemas.wire import Wire

Choice = Annotated[int, Meta(ge=0, lt=1 << 16)]
"""The index of a choice: readers keep a count for each up to it."""


class TokenLogprob(Wire, frozen=True):
    """The log probability of one token and of its most likely alternatives (text, logprob)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class TokenUsage(Wire, frozen=True):
    """Token counts as the client is told them; `cached_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class ErrorInfo(Wire, frozen=True):
    """A failure as the client is told it: `code` is one of `core.errors`, `param` may name a field."""

    code: str
    message: str
    param: str | None = None


FinishReason = Literal["stop", "length"]


class Event(Wire, frozen=True, kw_only=True, tag_field="kind"):
    """What every event names: the request as (tenant, id), its origin, and the epoch."""

    id: str
    tenant: str
    q: str
    offset: int
    epoch: int


class Started(Event, frozen=True, kw_only=True, tag="started"):
    """A worker begins, or goes on after `counts` tokens of each choice. `starts` counts from 1."""

    starts: int
    counts: tuple[int, ...]
    info: RequestInfo
    worker: str


@final
class Tokens(Event, frozen=True, kw_only=True, tag="tokens"):
    """Tokens `seq` … `seq + len(token_ids) - 1` of one choice, and the text they made visible.

    Text may lag behind token_ids (half a UTF-8 character, the beginning of a stop string) and comes
    with a later event. `finish_reason` marks the last event of this choice.
    """

    seq: int
    token_ids: tuple[int, ...]
    text: str
    choice: Choice = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None


class Released(Event, frozen=True, kw_only=True, tag="released"):
    """Clean hand-over: this start did not die. Changes nothing that is visible."""


class Terminal(Event, frozen=True, kw_only=True):
    """Ends the request. `counts`: tokens of each choice; a reader that has others drops it."""

    counts: tuple[int, ...]


class Finished(Terminal, frozen=True, kw_only=True, tag="finished"):
    """The answer is complete."""

    usage: TokenUsage
    finish_reasons: tuple[FinishReason, ...]


class Failed(Terminal, frozen=True, kw_only=True, tag="failed"):
    """The request ended with a documented error."""

    error: ErrorInfo


class Cancelled(Terminal, frozen=True, kw_only=True, tag="cancelled"):
    """The client, or its disconnect, ended the request."""


class Expired(Terminal, frozen=True, kw_only=True, tag="expired"):
    """A deadline ended the request; `deadline` says which."""

    deadline: Literal["start", "first_token", "total"] = "total"


AnyEvent = Started | Tokens | Released | Finished | Failed | Cancelled | Expired
AnyTerminal = Finished | Failed | Cancelled | Expired


class Accepted(Wire, frozen=True, kw_only=True, tag="accepted", tag_field="record"):
    """Appended by the API beside the request. No origin, no epoch: it binds and raises nothing."""

    id: str
    tenant: str
    info: RequestInfo
    v: Literal[1] = 1


class Fence(Wire, frozen=True, kw_only=True, tag="fence", tag_field="record"):
    """From here on, events for `qs` under a lower epoch than `epoch` are invisible."""

    epoch: int
    qs: tuple[str, ...]
    v: Literal[1] = 1


class Events(Wire, frozen=True, kw_only=True, tag="events", tag_field="record"):
    """All events of one engine step for one reply partition, in order."""

    events: tuple[AnyEvent, ...]
    v: Literal[1] = 1


ReplyRecord = Accepted | Fence | Events
