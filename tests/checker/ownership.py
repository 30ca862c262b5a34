"""Who may speak for a request, and in which order requests get their turn."""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.ids import parse_request_id
from schemas.requests import TIERS
from tests.checker.history import History
from tests.checker.plain_reader import Origin
from tests.checker.topics_read import TopicsRead

TURN_GRACE_MS = 1_000
"""How long a request may lie on the log before the worker that owns it must know of it."""


def check_epochs(read: TopicsRead) -> Iterator[str]:
    """An epoch is one process's, for what it acquired, and where its fence lies before its words."""
    for (q, epoch), voices in read.replies.voices.items():
        if len(voices) > 1:
            yield f"{q}: epoch {epoch} was spoken by {sorted(voices)}"
        acquired = read.acquired.get(epoch)
        if acquired is None or q not in acquired[0].qs:
            yield f"{q}: epoch {epoch} speaks for it and never acquired it"
    for (q, epoch), at in read.replies.unfenced.items():
        yield f"{q}: epoch {epoch} spoke at {at.position} with no fence of its own before"


ONE_STEP_MS = 250
"""Begun in one step, and told in records of several partitions."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A request's first start, by the process that then owned its partition."""

    name: str
    tier: int
    incarnation: str
    known_ms: int
    """From when on its worker must have known of it."""
    started_ms: int


def check_turns(history: History, read: TopicsRead) -> Iterator[str]:
    """Nobody of a lower tier is begun while one of a higher tier waits at the same worker."""
    turns = [it for origin in read.requests if (it := _turn(origin, history, read)) is not None]
    tiers = sorted({it.tier for it in turns})
    for higher in tiers[:-1]:
        waited = [it for it in turns if it.tier == higher]
        for late in turns:
            if late.tier <= higher:
                continue
            for it in waited:
                passed = it.incarnation == late.incarnation
                if passed and it.known_ms < late.started_ms < it.started_ms - ONE_STEP_MS:
                    if not _troubled(history, it.known_ms - TURN_GRACE_MS, late.started_ms):
                        yield f"{late.name} ({TIERS[late.tier]}) was begun before {it.name}"
                    break


def _turn(origin: Origin, history: History, read: TopicsRead) -> _Turn | None:
    """None: it never began, was begun before, or had to be looked up first."""
    request, stored = read.requests[origin]
    if request is None or stored is None:
        return None
    answer = read.answer((request.tenant, request.id))
    if answer.origin != origin or not answer.starts:
        return None
    epoch = min(answer.starts)
    started, at = answer.starts[epoch]
    acquired = read.acquired.get(epoch)
    if started.starts > 1 or acquired is None:
        return None
    age_ms = stored.record.time_ms - parse_request_id(request.id).time_ms
    if age_ms > TURN_GRACE_MS:
        return None
    span_ms = _within_span_ms(origin, history)
    if span_ms is None:
        return None
    owned_ms = read.fenced_ms.get(epoch, acquired[1].time_ms)  # its fences may take their time
    known_ms = max(stored.record.time_ms, owned_ms, span_ms) + TURN_GRACE_MS
    tier = TIERS.index(request.tier)
    return _Turn(request.id, tier, acquired[0].incarnation, known_ms, at.time_ms)


def _within_span_ms(origin: Origin, history: History) -> int | None:
    """When enough was committed for this offset to be begun at all."""
    q, offset = origin
    if offset < history.span_offsets:
        return 0
    moved = (
        it for it in history.commits if it.q == q and it.offset + history.span_offsets > offset
    )
    return next((it.time_ms for it in moved), None)


def _troubled(history: History, from_ms: int, until_ms: int) -> bool:
    return any(it.from_ms <= until_ms and it.until_ms >= from_ms for it in history.faults)
