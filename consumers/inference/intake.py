"""From a record on a request topic to work for the scheduler, or to the reason why not.

Every record ends somewhere: with the scheduler, completed because the log says it ended, refused
with `Failed` and a dead letter, or with a dead letter alone.
"""

import logging
import math
from dataclasses import dataclass

from core.errors import Refusal
from core.limits import Limits
from core.offsets import Handle
from core.recovery import Done, Interrupt, Resume, Verdict
from core.validation import MODEL_CHARS_MAX, TENANT_CHARS_MAX, check_request
from core.work import Work
from schemas.codec import UndecodableRecord, decode_info, decode_request
from schemas.envelope import REQUEST_ID, REQUEST_INFO, START_SECONDS, TENANT, header_text
from schemas.ids import parse_request_id
from schemas.operations import Start
from schemas.replies import ErrorInfo, Started
from schemas.requests import START_SECONDS_DEFAULT, Body, Deadlines, Request
from topics.ports import Record

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parked:
    """Not runnable: goes to `dead-letters` for `reason`; `error` is told to the client if it can be.

    `request_id`, `tenant` and `reply_partition` are None where the record does not say them. `beyond`:
    the reply partition that it names lies beyond those known, which may have grown since.
    """

    reason: str
    detail: str
    request_id: str | None = None
    tenant: str | None = None
    reply_partition: int | None = None
    error: ErrorInfo | None = None
    beyond: int | None = None
    starts: tuple[Start, ...] = ()


def read_request(record: Record, reply_partitions: int, limits: Limits) -> Request | Parked:
    """Decodes and checks a record."""
    try:
        request = decode_request(record.value)
    except UndecodableRecord as error:
        return _undecodable(record, str(error), reply_partitions)
    if not 1 <= len(request.tenant) <= TENANT_CHARS_MAX:
        # nobody can ask under such a name; said again it could make a record that no reader takes
        return Parked("invalid_request", f"'tenant' has {len(request.tenant)} characters")
    try:
        parts = parse_request_id(request.id)
    except ValueError as error:
        return Parked("bad_request_id", str(error), None, request.tenant)
    if parts.reply_partition >= reply_partitions:
        detail = f"reply partition {parts.reply_partition} of {reply_partitions}"
        return Parked(
            "bad_request_id", detail, request.id, request.tenant, beyond=parts.reply_partition
        )
    if stale := _stale(record, request, parts.time_ms, limits):
        return Parked("stale_id", stale, request.id, request.tenant)
    try:
        _check_tier(record, request)
        check_request(request, limits)
    except Refusal as refusal:
        return Parked(
            "invalid_request",
            refusal.message,
            request.id,
            request.tenant,
            parts.reply_partition,
            refusal.info(),
        )
    return request


def read_headline(
    record: Record, said: Started | None, reply_partitions: int, limits: Limits
) -> Request | None:
    """The request with an empty body, from what an older owner `said`, else from the headers.

    None where these do not tell enough, or where anything about it is odd: then the value has the
    word, as for every record that nobody can have started.
    """
    if said is not None:
        request_id, tenant, info = said.id, said.tenant, said.info
    else:
        names = (REQUEST_ID, TENANT, REQUEST_INFO)
        texts = [header_text(record.headers, name, 4096) for name in names]
        request_id, tenant, about = (text or "" for text in texts)
        try:
            info = decode_info(about.encode())
        except UndecodableRecord:
            return None
    start_seconds = _start_seconds(record)
    fits = (
        1 <= len(tenant) <= TENANT_CHARS_MAX
        and 1 <= len(info.model) <= MODEL_CHARS_MAX
        and 1 <= info.n <= limits.n
        and math.isfinite(info.total_seconds)
        and info.total_seconds > 0
        and start_seconds > 0
        and info.tier == record.topic.rpartition(".")[2]
    )
    try:
        parts = parse_request_id(request_id)
    except ValueError:
        return None
    request = Request(
        id=request_id,
        tenant=tenant,
        tier=info.tier,
        model=info.model,
        endpoint=info.endpoint,
        body=Body(n=info.n),
        deadlines=Deadlines(start_seconds=start_seconds, total_seconds=info.total_seconds),
        stream=info.stream,
        include_usage=info.include_usage,
    )
    if not fits or parts.reply_partition >= reply_partitions:
        return None
    return None if _stale(record, request, parts.time_ms, limits) else request


def _start_seconds(record: Record) -> float:
    """The record's own start deadline as its headers tell it, else the default; -1 for nonsense."""
    said = header_text(record.headers, START_SECONDS)
    if said is None:
        return START_SECONDS_DEFAULT
    try:
        found = float(said)
    except ValueError:
        return -1
    return found if math.isfinite(found) else -1


def _check_tier(record: Record, request: Request) -> None:
    """A record must not jump a queue, nor name a tier that this worker does not serve."""
    tier = record.topic.rpartition(".")[2]
    if tier != request.tier:
        message = f"'tier' is {request.tier!r}, but the record lies on {record.topic}."
        raise Refusal("invalid_request", message, param="tier")


def _undecodable(record: Record, detail: str, reply_partitions: int) -> Parked:
    """The headers may still say whose request it was, so that the client need not wait."""
    request_id = header_text(record.headers, REQUEST_ID)
    tenant = header_text(record.headers, TENANT)
    if request_id is None or tenant is None:
        return Parked("undecodable", detail)
    try:
        parts = parse_request_id(request_id)
    except ValueError:
        return Parked("undecodable", detail)
    if parts.reply_partition >= reply_partitions:
        return Parked("undecodable", detail, request_id, tenant, beyond=parts.reply_partition)
    error = ErrorInfo(code="undecodable", message=f"The request record cannot be read: {detail}")
    return Parked("undecodable", detail, request_id, tenant, parts.reply_partition, error)


def _stale(record: Record, request: Request, id_ms: int, limits: Limits) -> str | None:
    """Its id may have ended long ago, or lies in the future: nobody could find its answer."""
    if id_ms > record.time_ms + limits.clock_skew_seconds * 1000:
        return "the id's time lies in the future of the record"
    budget_s = min(request.deadlines.total_seconds, limits.reply_retention_seconds / 2)
    if request.tier != "batch":
        budget_s = min(budget_s, limits.total_seconds)
    if record.time_ms > id_ms + budget_s * 1000:
        return "the record was appended later after its id's time than its total deadline"
    return None


def is_late_copy(work: Work, limits: Limits) -> bool:
    """True for a record that may be a second publication: the log must be asked before it runs."""
    return work.append_ms - work.made_ms > limits.claim_lease_seconds * 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies, under which epoch, and when it was picked up."""

    q: str
    offset: int
    epoch: int
    append_ms: int
    now_s: float
    age_s: float


def make_work(request: Request, place: Place, handle: Handle, limits: Limits) -> Work:
    """Work with its deadlines: budgets from the append time plus monotonic time since."""
    deadlines = request.deadlines
    appended_s = place.now_s - place.age_s
    batch = request.tier == "batch"
    total_s = min(
        deadlines.total_seconds, limits.batch_total_seconds if batch else limits.total_seconds
    )
    start_s = total_s if batch else min(deadlines.start_seconds, limits.start_seconds)
    parts = parse_request_id(request.id)
    return Work(
        request=request,
        q=place.q,
        offset=place.offset,
        epoch=place.epoch,
        reply_partition=parts.reply_partition,
        handle=handle,
        made_ms=parts.time_ms,
        append_ms=place.append_ms,
        arrived_s=place.now_s,
        start_by_s=appended_s + start_s,
        end_by_s=min(appended_s + total_s, place.now_s + limits.reply_retention_seconds / 2),
    )


def apply_verdict(work: Work, verdict: Verdict) -> ErrorInfo | Done | None:
    """Prepares a suspect as the fold says. Returns Done to complete it, an error to end it so."""
    work.suspect = True
    if isinstance(verdict, Done):
        return verdict
    work.starts = verdict.starts
    if isinstance(verdict, Interrupt):
        work.counts = list(verdict.counts)
        _log.warning("request %s is interrupted: %s", work.request.id, verdict.reason)
        return interrupted(verdict.reason)
    work.spoken = verdict.spoken
    if isinstance(verdict, Resume):
        work.resume = verdict.logged
        work.counts = [len(choice.token_ids) for choice in verdict.logged]
    return None


def interrupted(reason: str) -> ErrorInfo:
    """What a client is told whose answer cannot be continued faithfully."""
    return ErrorInfo(
        code="interrupted",
        message=f"The answer was cut off and cannot be continued ({reason}); retry it.",
    )
