"""The checker on histories made by hand: a good one is silent, each spoiled one is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec import structs

from schemas.codec import encode
from schemas.fences import Acquired
from schemas.ids import make_request_id
from schemas.operations import Claim, Control, Usage
from schemas.replies import (
    Accepted,
    AnyEvent,
    ErrorInfo,
    Events,
    Failed,
    Fence,
    Finished,
    Started,
    Tokens,
    TokenUsage,
)
from schemas.requests import COMPLETIONS, Body, Request
from schemas.wire import Wire
from tests.checker.history import Action, Attempt, Commit, History, Seen, SeenTokens, Stored, Trim
from tests.checker.rules import check
from tests.checker.scripted_answer import expected_answer
from topics.ports import Record

NOW_MS = 1_767_225_600_000
Q = "requests.default.standard/0"
BODY = Body(prompt="two words", max_tokens=2)
PREFIX = expected_answer(BODY).longest[:6]


def request(number: int) -> Request:
    return Request(
        id=make_request_id(NOW_MS, 0, number),
        tenant="ann",
        tier="standard",
        model="scripted",
        endpoint=COMPLETIONS,
        body=BODY,
    )


REQUEST = request(1)
ID = REQUEST.id
SAID = {"id": ID, "tenant": "ann", "q": Q, "offset": 0}


class Log:
    """Writes a history."""

    def __init__(self) -> None:
        self.history = History()
        self._ends: dict[str, int] = {}

    def put(self, topic: str, record: Wire | bytes) -> None:
        offset = self._ends.get(topic, 0)
        self._ends[topic] = offset + 1
        value = record if isinstance(record, bytes) else encode(record)
        serial = len(self.history.stored)
        stored = Record(topic, 0, offset, NOW_MS + serial, None, value, ())
        self.history.stored.append(Stored(serial, stored))

    def say(self, *events: AnyEvent) -> None:
        self.put("replies", Events(events=events))

    def commit(self, offset: int, metadata: str) -> None:
        serial = len(self.history.stored)
        self.history.commits.append(Commit(serial, NOW_MS, "g", Q, offset, metadata))


def begun(epoch: int, count: int) -> Started:
    return Started(**SAID, epoch=epoch, starts=1, counts=(count,), info=REQUEST.info(), worker="w")  # type: ignore[arg-type]


def token(epoch: int, seq: int, text: str | None = None) -> Tokens:
    return Tokens(
        **SAID,  # type: ignore[arg-type]
        epoch=epoch,
        seq=seq,
        token_ids=(seq,),
        text=f"{PREFIX}.{seq} " if text is None else text,
        finish_reason="length" if seq == 1 else None,
    )


def finished(epoch: int) -> Finished:
    usage = TokenUsage(prompt_tokens=2, completion_tokens=2)
    return Finished(**SAID, epoch=epoch, counts=(2,), usage=usage, finish_reasons=("length",))  # type: ignore[arg-type]


BILL = Usage(
    request_id=ID,
    tenant="ann",
    model="scripted",
    tier="standard",
    endpoint=COMPLETIONS,
    q=Q,
    offset=0,
    epoch=1,
    outcome="finished",
    prompt_tokens=2,
    cached_tokens=0,
    completion_tokens=2,
    queue_seconds=0,
    run_seconds=0,
    engine_seconds=0,
)


def attempt(number: int, action: Action, after: int, seq: int) -> Attempt:
    reason = "length" if seq == 1 else None
    seen = Seen(after, [SeenTokens(0, seq, (seq,), f"{PREFIX}.{seq} ", reason)])
    if after:
        seen.terminal, seen.counts = "finished", (2,)
    return Attempt(
        number,
        "c",
        action,
        "ann",
        "api",
        NOW_MS,
        request_id=ID,
        result="ok",
        outcome="new",
        done_ms=NOW_MS + 1,
        seen=seen,
    )


def good() -> Log:
    """A request that two workers answered, one token each; its client came back in between."""
    log = Log()
    log.put("fences", Acquired(qs=(Q,), incarnation="a", ends=(0,)))
    log.put("replies", Fence(epoch=0, qs=(Q,)))
    log.put("requests.default.standard", REQUEST)
    log.put("replies", Accepted(id=ID, tenant="ann", info=REQUEST.info()))
    log.say(begun(0, 0), token(0, 0))
    log.put("fences", Acquired(qs=(Q,), incarnation="b", ends=(3,)))
    log.put("replies", Fence(epoch=1, qs=(Q,)))
    log.say(token(0, 1), finished(0))  # the first worker once more, behind the fence
    log.commit(0, "1:2")
    log.say(begun(1, 1), token(1, 1), finished(1))
    log.put("usage", BILL)
    log.commit(1, "1:6")
    log.history.attempts += [attempt(0, "submit", 0, 0), attempt(1, "resume", 1, 1)]
    return log


def test_a_good_history_is_silent() -> None:
    assert check(good().history) == []


def lose_a_request(log: Log) -> None:
    log.put("requests.default.standard", request(2))


def seen_last(log: Log) -> Seen:
    seen = log.history.attempts[1].seen
    assert seen is not None
    return seen


def repeat_a_token(log: Log) -> None:
    seen_last(log).tokens.insert(0, SeenTokens(0, 0, (0,), f"{PREFIX}.0 ", None))


def show_a_zombie(log: Log) -> None:
    seen = seen_last(log)
    seen.tokens[0] = replace(seen.tokens[0], text="of the first worker")


def say_something_else(log: Log) -> None:
    stored = log.history.stored[4]
    value = encode(Events(events=(begun(0, 0), token(0, 0, "other "))))
    log.history.stored[4] = replace(stored, record=stored.record._replace(value=value))


def revive_a_claim(log: Log) -> None:
    for name in (request(9).id, ID):
        log.put(
            "claims",
            Claim(tenant="ann", key="k", fingerprint="f", request_id=name, q=Q, life_seconds=60),
        )


def commit_back(log: Log) -> None:
    log.commit(0, "1:6")


def commit_the_unfinished(log: Log) -> None:
    log.put("requests.default.standard", request(2))
    log.commit(2, "1:6")


def commit_early(log: Log) -> None:
    first = log.history.commits[0]
    log.history.commits[0] = replace(first, offset=1)


def mark_too_far(log: Log) -> None:
    first = log.history.commits[0]
    log.history.commits[0] = replace(first, metadata="1:3")


def bill_nobody(log: Log) -> None:
    log.history.stored = [it for it in log.history.stored if it.record.topic != "usage"]


def leave_garbage(log: Log) -> None:
    log.put("requests.default.standard", b"{")


def tell_another_tenant(log: Log) -> None:
    first = log.history.attempts[1]
    log.history.attempts.append(replace(first, tenant="bob", action="status", seen=None))


def fail_without_a_name(log: Log) -> None:
    log.history.attempts[0].code = "oops"


def hang(log: Log) -> None:
    log.history.attempts[0].done_ms = None


def lose_what_was_accepted(log: Log) -> None:
    it = log.history.attempts[1]
    it.invoked_ms, it.result, it.code, it.seen = NOW_MS + 2, "refused", "not_found", None


SPOILED: list[tuple[str, Callable[[Log], None]]] = [
    ("I1", lose_a_request),
    ("I2", repeat_a_token),
    ("I2", show_a_zombie),
    ("I2", say_something_else),
    ("I3", revive_a_claim),
    ("I4", commit_back),
    ("I4", commit_the_unfinished),
    ("I4", commit_early),
    ("I4", mark_too_far),
    ("I4", bill_nobody),
    ("I9", leave_garbage),
    ("I11", tell_another_tenant),
    ("I12", fail_without_a_name),
    ("I12", hang),
    ("I12", lose_what_was_accepted),
]


@pytest.mark.parametrize(
    ("rule", "spoil"), SPOILED, ids=[spoil.__qualname__ for _, spoil in SPOILED]
)
def test_a_spoiled_history_is_told(rule: str, spoil: Callable[[Log], None]) -> None:
    log = good()
    spoil(log)
    assert rule in {it.rule for it in check(log.history)}


def test_positions_need_not_cover_what_retention_had_taken() -> None:
    for start, excused in ((2, False), (3, True)):
        log = good()
        mark_too_far(log)
        log.history.trims.append(Trim(NOW_MS, 0, start))
        assert ("I4" not in {it.rule for it in check(log.history)}) is excused


def test_a_late_copy_is_refused_only_where_the_log_was_cut() -> None:
    for trims, excused in (([], False), ([Trim(NOW_MS, 0, 1)], True)):
        log = Log()
        log.put("fences", Acquired(qs=(Q,), incarnation="a", ends=(0,)))
        log.put("replies", Fence(epoch=0, qs=(Q,)))
        log.put("requests.default.standard", REQUEST)
        error = ErrorInfo(code="result_expired", message="")
        log.say(Failed(**SAID, epoch=0, counts=(), error=error))  # type: ignore[arg-type]
        log.put("usage", structs.replace(BILL, epoch=0, outcome="failed", completion_tokens=0))
        log.history.trims += trims
        assert (check(log.history) == []) is excused


def test_work_on_what_was_cancelled_before_is_told() -> None:
    log = good()
    cancel = Control(kind="cancel", tenant="ann", request_id=ID)
    record = Record("control", 0, 0, NOW_MS - 60_000, None, encode(cancel), ())
    log.history.stored.insert(0, Stored(0, record))
    for index, it in enumerate(log.history.stored):
        late_ms = 10_000 if it.record.topic == "replies" and it.record.offset >= 5 else 0
        moved = it.record._replace(time_ms=it.record.time_ms + late_ms)
        log.history.stored[index] = Stored(index, moved)
    log.history.commits.clear()
    assert "I8" in {it.rule for it in check(log.history)}
