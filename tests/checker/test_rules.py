"""The checker on histories made by hand: a good one is silent, each spoiled one is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec import structs

from schemas.codec import encode
from schemas.operations import Claim, Control
from schemas.replies import ErrorInfo, Events, Failed, Started
from tests.checker.handmade import (
    BILL,
    BODY,
    ID,
    NOW_MS,
    PREFIX,
    REQUEST,
    TOPIC,
    Log,
    Q,
    begun,
    good,
    opened,
    request,
    said,
    seen_token,
    token,
)
from tests.checker.history import Sample, Seen, Stored, Trim
from tests.checker.rules import check
from topics.ports import Record


def test_a_good_history_is_silent() -> None:
    assert check(good().history) == []


def lose_a_request(log: Log) -> None:
    log.put(TOPIC, request(2))


def accept_what_is_on_no_topic(log: Log) -> None:
    log.history.attempts[0].request_id = request(7).id


def seen_last(log: Log) -> Seen:
    seen = log.history.attempts[1].seen
    assert seen is not None
    return seen


def repeat_a_token(log: Log) -> None:
    seen_last(log).tokens.insert(0, seen_token(0))


def read_a_token_twice(log: Log) -> None:
    log.history.attempts[1].seen = Seen(1, position=2, text=f"{PREFIX}.0 {PREFIX}.1 ")


def end_in_the_middle(log: Log) -> None:
    log.history.attempts[0].seen = Seen(0, position=1, text=f"{PREFIX}.0 ", terminal="finished")


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


def answer_another_payload(log: Log) -> None:
    claim = Claim(tenant="ann", key="k", fingerprint="f", request_id=ID, q=Q, life_seconds=60)
    log.put("claims", claim)
    first = log.history.attempts[0]
    first.key, first.fingerprint = "k", "g"


def commit_back(log: Log) -> None:
    log.commit(0, "1:6")


def commit_the_unfinished(log: Log) -> None:
    log.put(TOPIC, request(2))
    log.commit(2, "1:6")


def commit_early(log: Log) -> None:
    first = log.history.commits[0]
    log.history.commits[0] = replace(first, offset=1)


def mark_too_far(log: Log) -> None:
    first = log.history.commits[0]
    log.history.commits[0] = replace(first, metadata="1:3")


def bill_nobody(log: Log) -> None:
    log.history.stored = [it for it in log.history.stored if it.record.topic != "usage"]


def show_a_zombie(log: Log) -> None:
    at = next(i for i, it in enumerate(log.history.stored) if b'"token_ids":[1]' in _value(it))
    stored = log.history.stored[at]
    value = encode(Events(events=(token(0, 1, "of the first worker"),)))
    log.history.stored[at] = replace(stored, record=stored.record._replace(value=value))
    seen_last(log).tokens[0] = seen_token(1, "of the first worker")


def _value(stored: Stored) -> bytes:
    return stored.record.value or b""


def speak_for_what_is_anothers(log: Log) -> None:
    log.history.stored = [it for it in log.history.stored if b'"incarnation":"b"' not in _value(it)]


def begin_a_lower_tier_first(log: Log) -> None:
    """One worker, two tiers: a standard one is begun while a premium one has waited for seconds."""
    premium = "requests.default.premium"
    epoch = 2
    log.acquire("c", f"{premium}/0")
    log.fence(epoch)
    log.later_ms = 5_000
    late = [request(5, "premium", NOW_MS + 5_000), request(6, "standard", NOW_MS + 5_000)]
    for topic, it in zip((premium, TOPIC), late, strict=True):
        log.put(topic, it)
    log.later_ms = 9_000
    for q, offset, it in ((Q, 1, late[1]), (f"{premium}/0", 0, late[0])):
        log.later_ms += 1_000
        fields = said(epoch, offset, it.id) | {"q": q}
        log.say(Started(**fields, starts=1, counts=(0,), info=it.info(), worker="w"))  # type: ignore[arg-type]


def open_too_many(log: Log) -> None:
    log.history.samples.append(Sample("api-0", "inferlog_log_scans_running", 13.0))


def begin_too_far_ahead(log: Log) -> None:
    log.history.span_offsets = 1
    log.history.commits.clear()
    log.say(begun(1, 0, offset=1))


def leave_garbage(log: Log) -> None:
    log.put(TOPIC, b"{")


def park_an_innocent(log: Log) -> None:
    log.park("poison")


def never_rest(log: Log) -> None:
    log.history.broken.append("not at rest within 60 s")


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


def log_a_prompt(log: Log) -> None:
    log.history.secrets = ["a key", str(BODY.prompt)]
    log.history.writings["worker-0.log"] = f'WARNING cannot read "{BODY.prompt}"'


def work_on_what_was_cancelled(log: Log) -> None:
    cancel = Control(kind="cancel", tenant="ann", request_id=ID)
    record = Record("control", 0, 0, NOW_MS - 60_000, None, encode(cancel), ())
    log.history.stored.insert(0, Stored(0, record))
    for index, it in enumerate(log.history.stored):
        late_ms = 10_000 if it.record.topic == "replies" and it.record.offset >= 5 else 0
        moved = it.record._replace(time_ms=it.record.time_ms + late_ms)
        log.history.stored[index] = Stored(index, moved)
    log.history.commits.clear()


SPOILED: list[tuple[str, Callable[[Log], None]]] = [
    ("I1", lose_a_request),
    ("I1", accept_what_is_on_no_topic),
    ("I2", repeat_a_token),
    ("I2", read_a_token_twice),
    ("I2", end_in_the_middle),
    ("I2", say_something_else),
    ("I3", revive_a_claim),
    ("I3", answer_another_payload),
    ("I4", commit_back),
    ("I4", commit_the_unfinished),
    ("I4", commit_early),
    ("I4", mark_too_far),
    ("I4", bill_nobody),
    ("I5", show_a_zombie),
    ("I5", speak_for_what_is_anothers),
    ("I6", begin_a_lower_tier_first),
    ("I7", open_too_many),
    ("I7", begin_too_far_ahead),
    ("I8", work_on_what_was_cancelled),
    ("I9", leave_garbage),
    ("I9", park_an_innocent),
    ("I10", never_rest),
    ("I11", tell_another_tenant),
    ("I12", fail_without_a_name),
    ("I12", hang),
    ("I12", lose_what_was_accepted),
    ("I13", log_a_prompt),
]


@pytest.mark.parametrize(
    ("rule", "spoil"), SPOILED, ids=[spoil.__qualname__ for _, spoil in SPOILED]
)
def test_a_spoiled_history_is_told(rule: str, spoil: Callable[[Log], None]) -> None:
    log = good()
    spoil(log)
    assert rule in {it.rule for it in check(log.history)}


def test_every_invariant_of_the_protocol_has_a_history_that_breaks_it() -> None:
    assert {rule for rule, _ in SPOILED} == {f"I{number}" for number in range(1, 14)}


def test_what_is_poison_may_be_parked_and_fail() -> None:
    log = opened()
    log.history.poison = ("two words",)
    error = ErrorInfo(code="poison", message="")
    log.say(begun(0, 0), Failed(**said(0, 0), counts=(0,), error=error))  # type: ignore[arg-type]
    log.park("poison")
    log.commit(1)
    assert check(log.history) == []
    assert REQUEST.body == BODY


def test_positions_need_not_cover_what_retention_had_taken() -> None:
    for start, excused in ((2, False), (3, True)):
        log = good()
        mark_too_far(log)
        log.history.trims.append(Trim(NOW_MS, 0, start))
        assert ("I4" not in {it.rule for it in check(log.history)}) is excused


def test_a_late_copy_is_refused_only_where_the_log_was_cut() -> None:
    for trims, excused in (([], False), ([Trim(NOW_MS, 0, 1)], True)):
        log = Log()
        log.take(0, "a")
        log.put(TOPIC, REQUEST)
        error = ErrorInfo(code="result_expired", message="")
        log.say(Failed(**said(0, 0), counts=(), error=error))  # type: ignore[arg-type]
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
