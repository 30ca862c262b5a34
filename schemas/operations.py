"""Records beside the request path: claims, control, usage, workers, dead letters."""

from typing import Literal

from schemas.requests import Endpoint, Tier
from schemas.wire import Wire


class Claim(Wire, frozen=True):
    """On `claims`: binds (tenant, idempotency key) to a request id. The first live one wins.

    `fingerprint` is the SHA-256 (hex) of the canonical payload; `q` (`topic/partition`) is where the
    request goes, also when another replica has to publish it; `life_seconds` count from append time.
    """

    tenant: str
    key: str
    fingerprint: str
    request_id: str
    q: str
    life_seconds: float
    v: Literal[1] = 1


class Control(Wire, frozen=True):
    """On `control`, read by everyone: cancel or delete a request; later also drain, load, unload.

    `redeem`: the ticket named is used up by whoever made up `use`, if no earlier record names it.
    """

    kind: Literal["cancel", "delete", "redeem", "drain", "load", "unload"]
    tenant: str | None = None
    request_id: str | None = None
    worker_id: str | None = None
    model: str | None = None
    reason: str | None = None
    ticket: str | None = None
    use: str | None = None
    v: Literal[1] = 1


Outcome = Literal["finished", "failed", "cancelled", "expired"]


class Usage(Wire, frozen=True):
    """On `usage`: what one request took. One row per request id survives in a ledger."""

    request_id: str
    tenant: str
    model: str
    tier: Tier
    endpoint: Endpoint
    q: str
    offset: int
    epoch: int
    outcome: Outcome
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_seconds: float
    run_seconds: float
    engine_seconds: float
    key_prefix: str | None = None
    v: Literal[1] = 1


class ModelState(Wire, frozen=True):
    """A model on a worker: context length in tokens, and whether it takes requests."""

    name: str
    context_tokens: int
    state: Literal["loading", "ready", "draining"]


class WorkerState(Wire, frozen=True):
    """On `workers`, keyed by worker id: every 2 s and on change; a tombstone when it leaves."""

    worker_id: str
    incarnation: str
    pool: str
    models: tuple[ModelState, ...]
    slots: int
    running: int
    waiting: int
    tokens_per_second: float
    qs: tuple[str, ...]
    member_ids: tuple[str, ...]
    version: str
    time_ms: int
    v: Literal[1] = 1


class Start(Wire, frozen=True):
    """One start in the history of a dead letter."""

    epoch: int
    starts: int
    worker: str


class DeadLetter(Wire, frozen=True):
    """On `dead-letters`: a record that was not, or not to the end, processed, and why.

    `key` and `value` are the original bytes (base64 in JSON); so are header values.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    request_id: str | None = None
    tenant: str | None = None
    starts: tuple[Start, ...] = ()
    v: Literal[1] = 1


class LetterMark(Wire, frozen=True, tag="letter_mark", tag_field="record"):
    """On `dead-letters`: what an operator did with the letter at `offset` of `partition` there.

    `request_id` is the letter's. `redriven`: the request runs again as `new_id` (None: its bytes were
    published as they were). It is written first; `void` takes it back where `new_id` was not published
    after all. `dropped`: nobody needs it any more. Nothing is deleted before retention does.
    """

    partition: int
    offset: int
    action: Literal["redriven", "void", "dropped"]
    request_id: str | None = None
    new_id: str | None = None
    v: Literal[1] = 1
