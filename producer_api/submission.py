"""What goes into the pipeline and what comes out: a draft, a submission, a snapshot."""

from dataclasses import dataclass, field
from typing import Literal

from core.stream import Visible
from producer_api.streams import ReplyStream
from schemas.ids import parse_request_id
from schemas.replies import Accepted, Cancelled, Expired, Failed, Finished, Started
from schemas.requests import (
    CHAT,
    Body,
    Deadlines,
    Endpoint,
    Request,
    RequestInfo,
    ResponseEcho,
    Tier,
)

State = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]


def lowered(budgets: Deadlines, total_s: float) -> Deadlines:
    """The same budgets with a total of at most so much; none of them may outlast it."""
    total_s = min(total_s, budgets.total_seconds)
    return Deadlines(
        start_seconds=min(budgets.start_seconds, total_s),
        first_token_seconds=min(budgets.first_token_seconds, total_s),
        total_seconds=total_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked request that has no id yet."""

    tenant: str
    tier: Tier
    model: str
    endpoint: Endpoint
    body: Body
    deadlines: Deadlines = field(default_factory=Deadlines)
    stream: bool = False
    include_usage: bool = False
    arrived_s: float | None = None
    """The event loop's time at which its last byte came; None: the client cannot be timed."""
    response: ResponseEcho | None = None

    def request(self, request_id: str, pool: str) -> Request:
        """The record for it."""
        return Request(
            id=request_id,
            tenant=self.tenant,
            tier=self.tier,
            model=self.model,
            endpoint=self.endpoint,
            body=self.body,
            pool=pool,
            deadlines=self.deadlines,
            stream=self.stream,
            include_usage=self.include_usage,
            response=self.response,
        )


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The client's key, the SHA-256 of the canonical payload, and whether to join a running one."""

    key: str = field(repr=False)  # keys never reach a log
    fingerprint: str
    attach: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted request, or the one that holds its key; `stream` must be closed."""

    request_id: str
    outcome: Literal["new", "attached", "replayed"]
    stream: ReplyStream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the log said of a request when it was asked."""

    info: RequestInfo
    state: State
    visible: list[Visible]


NO_INFO = RequestInfo(endpoint=CHAT, model="", tier="standard")
"""Of a record on a request topic that could not be read: all that is known is that it failed."""


def info_of(visible: list[Visible]) -> RequestInfo | None:
    """What `Accepted` or `Started` says of a request; None if neither is there."""
    return next((it.info for it in visible if isinstance(it, Accepted | Started)), None)


def late_by(request_id: str, total_seconds: float, now_ms: float, margin_seconds: float) -> float:
    """For how many seconds a request without a terminal has counted as expired.

    After its id's time + 2 x total deadline + margin its record has ended, or is refused.
    """
    age_s = (now_ms - parse_request_id(request_id).time_ms) / 1000
    return age_s - 2 * total_seconds - margin_seconds


def snapshot_of(
    request_id: str, visible: list[Visible], now_ms: float, margin_seconds: float
) -> Snapshot:
    """The state that these events (at least one) give; without a terminal it expires in the end."""
    info = info_of(visible) or NO_INFO
    state = _state(visible[-1])
    late_s = late_by(request_id, info.total_seconds, now_ms, margin_seconds)
    if state in ("queued", "in_progress") and late_s > 0:
        state = "expired"
    return Snapshot(info, state, visible)


def _state(last: Visible) -> State:
    if isinstance(last, Finished):
        return "completed"
    if isinstance(last, Failed):
        return "failed"
    if isinstance(last, Cancelled):
        return "cancelled"
    if isinstance(last, Expired):
        return "expired"
    return "queued" if isinstance(last, Accepted) else "in_progress"
