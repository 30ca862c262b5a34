"""Records that an older owner may have started: what the log says of them, before they run again.

The body of such a record may be what killed the older owner, already in the parser. So it is read
late: what must be known before stands in the record's headers, or in the older owner's `Started`; the
body is parsed once our own `Started` is acknowledged, and its death, if it dies, is counted.
"""

import logging
from dataclasses import replace
from typing import Protocol

from consumers.inference.accounts import Accounts
from consumers.inference.engine.ports import Engine
from consumers.inference.intake import (
    Parked,
    apply_verdict,
    interrupted,
    read_headline,
    read_request,
)
from consumers.inference.measures import Measures
from consumers.inference.ownership import Owned
from core.limits import Limits
from core.recovery import Done, unfaithful
from core.runs import Run
from core.work import Work
from schemas.operations import Start
from schemas.replies import ErrorInfo
from schemas.requests import Request
from topics.ports import Record

_log = logging.getLogger(__name__)


class Host(Protocol):
    """What is asked of the worker."""

    def arrive(self, work: Work) -> None:
        """Hands a work to the scheduler."""
        ...

    def fail(self, work: Work, error: ErrorInfo) -> None:
        """Ends a work; nothing happens if it has ended."""
        ...

    def owns(self, work: Work) -> bool:
        """Whether it was picked up under the epoch that still holds."""
        ...


def _same(found: Request, headline: Request) -> bool:
    told = (headline.tenant, headline.id, headline.info())
    return (found.tenant, found.id, found.info()) == told


class Suspects:
    """Judges suspects, reads their bodies, and parks the poison among them."""

    def __init__(
        self, host: Host, engine: Engine, accounts: Accounts, measures: Measures, limits: Limits
    ) -> None:
        self._host = host
        self._engine = engine
        self._accounts = accounts
        self._measures = measures
        self._limits = limits
        self._reply_partitions = 0  # their count only grows

    def headline(self, owned: Owned, record: Record) -> Request | None:
        """The request without its body, where something beside the body tells it."""
        said = owned.said(record.offset)
        self._reply_partitions = max(self._reply_partitions, owned.reply_partitions)
        return read_headline(record, said, owned.reply_partitions, self._limits)

    def judge(self, owned: Owned, work: Work, record: Record) -> None:
        """Completes, ends, parks or runs it, as the log says."""
        verdict = owned.verdict(
            work.key, work.offset, work.reply_partition, work.request.body, self._engine.resumes
        )
        outcome = apply_verdict(work, verdict)
        self._measures.deaths(work)
        if isinstance(outcome, Done):
            self._measures.count("suspect", "done")
            self._accounts.said_already(work, outcome.terminal)
        elif outcome is not None:
            self._host.fail(work, outcome)
        elif work.starts >= self._limits.starts_max:
            self._park_poison(work, record, owned.history(work.offset))
        else:
            self._measures.suspect(work)
            self._host.arrive(work)

    def read_body(self, work: Work, run: Run) -> Run | None:
        """The run with its body, once `Started` is acknowledged; None if it has been ended."""
        record, work.unread = work.unread, None
        if not isinstance(record, Record):
            return run
        found = read_request(record, self._reply_partitions, self._limits)
        if not isinstance(found, Parked) and not _same(found, work.request):
            message = "The headers of the record tell of another request than its value."
            error = ErrorInfo(code="invalid_request", message=message)
            tenant, request_id = work.key
            found = Parked("invalid_request", message, request_id, tenant, error=error)
        if isinstance(found, Parked):
            self._set_aside(work, record, found)
            return None
        if work.started_s is not None:
            work.first_token_by_s = work.started_s + found.deadlines.first_token_seconds
        work.request = found
        if work.resume and (reason := unfaithful(found.body, self._engine.resumes)):
            self._host.fail(work, interrupted(reason))
            return None
        return replace(run, model=found.model, endpoint=found.endpoint, body=found.body)

    def _park_poison(self, work: Work, record: Record, starts: tuple[Start, ...]) -> None:
        detail = (
            f"died {work.starts} times without a new token, the last time with nothing beside it"
        )
        message = "This request ended whatever ran it, several times, and is not run again."
        error = ErrorInfo(code="poison", message=message)
        tenant, request_id = work.key
        parked = Parked("poison", detail, request_id, tenant, error=error, starts=starts)
        self._set_aside(work, record, parked)

    def _set_aside(self, work: Work, record: Record, parked: Parked) -> None:
        """The dead letter first: once the terminal is on the log, nobody would write it any more."""
        self._measures.count("dead_letter", parked.reason)
        extra = {"request_id": work.request.id}
        _log.warning("%s offset %s parked: %s", work.q, work.offset, parked.reason, extra=extra)
        message = f"The request record cannot be used: {parked.detail}"
        error = parked.error or ErrorInfo(code="undecodable", message=message)

        def kept() -> None:
            if self._host.owns(work):
                self._host.fail(work, error)

        self._accounts.dead_letter(record, parked, kept)
