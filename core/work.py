"""A piece of work inside one worker, the events that concern it, and the commands that follow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Literal

from core.offsets import Handle
from core.runs import Logged, Output, Report, Run
from core.stream import Key
from schemas.replies import (
    AnyEvent,
    AnyTerminal,
    Finished,
    FinishReason,
    Released,
    Started,
    Tokens,
    TokenUsage,
)
from schemas.requests import Request

Deadline = Literal["start", "first_token", "total"]


class Phase(Enum):
    """The life of a piece of work inside one worker."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Work:
    """One request record that this worker owns, from pick-up to its terminal.

    `made_ms` is the time in its id, `append_ms` that of its record, both of the broker's clock; all other
    times are seconds of the worker's monotonic clock. `counts` are the tokens of each choice that
    were handed to the log so far; `resume` what older owners had logged. `suspect`: an older owner
    may have started it; `spoken`: one did, so its events may be the visible ones. `starts`: how often
    it died already (`core.poison`). `unread`: the record, as its host took it, where `request` says
    only what stands beside the body, because the body is parsed behind the ack of `Started`.
    """

    request: Request
    q: str
    offset: int
    epoch: int
    reply_partition: int
    handle: Handle
    made_ms: int
    append_ms: int
    arrived_s: float
    start_by_s: float
    end_by_s: float
    starts: int = 0
    suspect: bool = False
    spoken: bool = False
    resume: tuple[Logged, ...] = ()
    counts: list[int] = field(default_factory=list)
    reasons: list[FinishReason | None] = field(default_factory=list)
    phase: Phase = Phase.WAITING
    run_id: int = -1
    started_s: float | None = None
    first_token_s: float | None = None
    first_token_by_s: float | None = None
    last_token_s: float | None = None
    followers: list[Handle] = field(default_factory=list)
    unread: object = None
    tried: list[Logged] = field(default_factory=list)
    """While it runs alone: all its tokens so far, to go on from if it makes room."""

    @property
    def key(self) -> Key:
        """(tenant, id)."""
        return self.request.tenant, self.request.id

    def run(self) -> Run:
        """As the engine takes it."""
        it = self.request
        return Run(self.run_id, it.id, it.model, it.endpoint, it.body, self.resume, it.tenant)

    def tokens(self, output: Output, now_s: float) -> Tokens:
        """Counts an output of the engine; returns the event that says it."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        choice = output.choice
        seq = self.counts[choice]
        self.counts[choice] = seq + len(output.token_ids)
        if output.finish_reason is not None:
            self.reasons[choice] = output.finish_reason
        return Tokens(  # field by field: this is said for every step of every run
            id=self.request.id,
            tenant=self.request.tenant,
            q=self.q,
            offset=self.offset,
            epoch=self.epoch,
            seq=seq,
            token_ids=output.token_ids,
            text=output.text,
            choice=choice,
            logprobs=output.logprobs,
            finish_reason=output.finish_reason,
        )

    def given(self) -> int:
        """Tokens that older owners, or earlier runs, had brought."""
        return sum(len(choice.token_ids) for choice in self.resume)

    def begin_trial(self) -> None:
        """It starts alone."""
        self.tried = list(self.resume) or [Logged()] * self.request.body.n

    def try_output(self, output: Output) -> None:
        """Keeps an output of the run that is alone."""
        had = self.tried[output.choice]
        self.tried[output.choice] = Logged(
            had.token_ids + output.token_ids,
            had.text + output.text,
            output.finish_reason or had.finish_reason,
        )

    def due_s(self) -> float:
        """No deadline of it passes before this moment, unless it enters the engine meanwhile.

        While its body is unread that cannot be told: it may name an earlier deadline.
        """
        if self.phase is Phase.WAITING:
            return self.end_by_s if self.spoken else min(self.start_by_s, self.end_by_s)
        if self.first_token_by_s is None or self.first_token_s is not None:
            return self.end_by_s
        if self.unread is not None:
            return -inf
        return min(self.first_token_by_s, self.end_by_s)

    def overdue(self, now_s: float) -> Deadline | None:
        """The deadline that has passed by now."""
        if now_s >= self.end_by_s:
            return "total"
        if self.phase is Phase.WAITING:
            return "start" if not self.spoken and now_s >= self.start_by_s else None
        by_s = self.first_token_by_s
        if by_s is None or self.first_token_s is not None or self.unread is not None:
            return None
        return "first_token" if now_s >= by_s else None

    def step_aside(self) -> None:
        """Waits again, to go on from what it brought."""
        self.resume = tuple(self.tried)
        self.phase = Phase.WAITING
        self.first_token_s = None
        self.suspect = self.spoken = True

    def event_fields(self) -> dict[str, Any]:
        """What every event of it says."""
        return {
            "id": self.request.id,
            "tenant": self.request.tenant,
            "q": self.q,
            "offset": self.offset,
            "epoch": self.epoch,
        }

    def terminal_fields(self) -> dict[str, Any]:
        """What every terminal of it says."""
        return {**self.event_fields(), "counts": tuple(self.counts)}

    def finished(self, prompt_tokens: int, cached_tokens: int) -> Finished:
        """Every choice has ended."""
        usage = TokenUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(self.counts),
            cached_tokens=cached_tokens,
        )
        reasons = tuple(reason or "stop" for reason in self.reasons)
        return Finished(**self.terminal_fields(), usage=usage, finish_reasons=reasons)

    def released(self) -> Released:
        """This start ends here, and nobody died of it."""
        return Released(**self.event_fields())


@dataclass(frozen=True, slots=True)
class Arrived:
    """A record was picked up, decoded and found runnable."""

    work: Work


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A cancel was read from `control`; `earlier`: looked up, it was appended before what is known."""

    tenant: str
    request_id: str
    earlier: bool


@dataclass(frozen=True, slots=True)
class EngineReported:
    """All reports of one engine step."""

    reports: Sequence[Report]


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The engine has this many slots now (0 while it is away)."""

    slots: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The worker does not own these request partitions any more, or not under that epoch."""

    qs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Draining:
    """No new starts from now on."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: look at the deadlines."""


Event = Arrived | CancelRequested | EngineReported | CapacityChanged | Dropped | Draining | Tick


@dataclass(frozen=True, slots=True)
class StartOnEngine:
    """Publish `started`, then (at once, or after its ack if `awaited`) submit the run."""

    work: Work
    run: Run
    started: Started
    awaited: bool


@dataclass(frozen=True, slots=True)
class AbortOnEngine:
    """Free the slot of a run."""

    run_id: int


@dataclass(frozen=True, slots=True)
class PublishReply:
    """Append an event of this work to its reply partition."""

    work: Work
    event: AnyEvent


@dataclass(frozen=True, slots=True)
class EndWork:
    """The terminal: publish it and the usage; the offset is complete once all is acknowledged."""

    work: Work
    event: AnyTerminal
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class CompleteOffset:
    """Nothing is to be said: the offset is complete at once."""

    handle: Handle


Command = StartOnEngine | AbortOnEngine | PublishReply | EndWork | CompleteOffset
