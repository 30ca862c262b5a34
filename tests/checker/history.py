"""What a run leaves behind: what clients did and saw, and what the topics held.

Written by the simulation and by whoever drives real processes; read by `tests.checker.rules`. Order
is told by serials where the run has one order of everything (`serial` < 0: only times are known).
"""

from dataclasses import dataclass, field
from typing import Literal

from core.limits import DEFAULT_LIMITS
from schemas.requests import Body
from topics.ports import Record

Action = Literal["submit", "resume", "status", "cancel"]
Result = Literal["ok", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A record that was ever appended, in append order; `sender` names the process."""

    serial: int
    record: Record
    sender: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """An accepted commit; `serial`: how many records had been appended when it was accepted."""

    serial: int
    time_ms: int
    group: str
    q: str
    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """One token event as a client got it."""

    choice: int
    seq: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None


@dataclass(slots=True)
class Seen:
    """What one connection showed of an answer, from position `after` on.

    `terminal`: the kind of the terminal, with `counts` and, for a failure, its `code`. Who reads HTTP
    is not told tokens: he has the `text` between `after` and `position`, and no `tokens`.
    """

    after: int = 0
    tokens: list[SeenTokens] = field(default_factory=list)
    terminal: str | None = None
    counts: tuple[int, ...] = ()
    code: str | None = None
    position: int = 0
    text: str | None = None


@dataclass(slots=True)
class Attempt:
    """One call of a client. `ok`: it was accepted or answered; `unknown`: nobody can say."""

    number: int
    client: str
    action: Action
    tenant: str
    replica: str
    invoked_ms: int
    key: str | None = None
    fingerprint: str | None = None
    attach: bool = False
    request_id: str | None = None
    result: Result = "unknown"
    code: str | None = None
    outcome: str | None = None
    done_ms: int | None = None
    state: str | None = None
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wanted of the scripted engine: enough to say what the answer must be."""

    tenant: str
    body: Body


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was wrong with the world for a while."""

    kind: str
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process said of itself: a gauge of its `/metrics`, by the name it has there."""

    process: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Trim:
    """Retention: what lay before `start` in this reply partition is gone since `time_ms`."""

    time_ms: int
    partition: int
    start: int


@dataclass(slots=True)
class History:
    """All of it. `broken` are things the driver itself saw (hangs, slots not freed, …).

    `poison` are texts whose prompts may kill what runs them. `samples` and `writings` (log files,
    metrics, errors, by where they were found) are of real processes; none of the `secrets` may be
    in a writing.
    """

    attempts: list[Attempt] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    trims: list[Trim] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    total_seconds: float = 600.0
    claim_life_seconds: float = 3600.0
    clock_error_ms: int = 0
    """How wrong a process's own clock is at most: a replica has no other before its first ack."""
    span_offsets: int = DEFAULT_LIMITS.span_offsets
    scripted: bool = True
    """Each answer follows from its prompt; what a model says nobody can know."""
    poison: tuple[str, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    writings: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    trimmed: bool = False
    """Retention took records while clients could still ask for them."""
