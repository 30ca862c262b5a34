"""What a new owner decides about each offset that older owners may have started."""

import pytest

from core.recovery import Done, Fold, Interrupt, Resume, RunFresh
from core.runs import FEATURES, Feature, Logged
from core.stream import Reader
from schemas.replies import AnyEvent, Events, Fence, Finished, Started, Tokens, TokenUsage
from schemas.requests import CHAT, Body, RequestInfo, ResponseFormat

Q, OTHER = "requests.default.premium/0", "requests.default.premium/1"
KEY = ("acme", "r1")
INFO = RequestInfo(endpoint=CHAT, model="m", tier="premium")
PLAIN = Body(prompt="x")


def started(*counts: int, q: str = Q, offset: int = 7, epoch: int = 1, starts: int = 1) -> Started:
    return Started(
        id="r1",
        tenant="acme",
        q=q,
        offset=offset,
        epoch=epoch,
        starts=starts,
        counts=counts or (0,),
        info=INFO,
        worker="w",
    )


def tokens(seq: int, text: str, *, choice: int = 0, epoch: int = 1, last: bool = False) -> Tokens:
    return Tokens(
        id="r1",
        tenant="acme",
        q=Q,
        offset=7,
        epoch=epoch,
        seq=seq,
        token_ids=tuple(map(ord, text)),
        text=text,
        choice=choice,
        finish_reason="stop" if last else None,
    )


def finished(*counts: int) -> Finished:
    return Finished(
        id="r1",
        tenant="acme",
        q=Q,
        offset=7,
        epoch=1,
        counts=counts,
        usage=TokenUsage(prompt_tokens=1, completion_tokens=sum(counts)),
        finish_reasons=("stop",),
    )


def folded(*events: AnyEvent, truncated: bool = False) -> Fold:
    fold = Fold(0, Reader(), frozenset({Q}), truncated)
    for position, event in enumerate(events):
        fold.feed(position, Events(events=(event,)))
    return fold


def test_nothing_said_runs_fresh() -> None:
    assert folded().verdict(KEY, (Q, 7), PLAIN) == RunFresh(0, spoken=False)


def test_a_start_without_a_token_runs_fresh_and_counts() -> None:
    fold = folded(started(), started(epoch=2, starts=2))
    assert fold.verdict(KEY, (Q, 7), PLAIN) == RunFresh(2, spoken=True)
    assert fold.first == {(Q, 7): 0}


def test_what_ended_is_done_with_its_terminal() -> None:
    first = started()
    end = finished(2)
    fold = folded(first, tokens(0, "ab"), end)
    assert fold.verdict(KEY, (Q, 7), PLAIN) == Done(end, first)


def test_what_is_bound_to_another_origin_is_done_without_one() -> None:
    fold = folded(started(q=OTHER, offset=3), started())
    assert fold.verdict(KEY, (Q, 7), PLAIN) == Done(None, None)


def test_another_tenant_of_the_same_id_is_another_request() -> None:
    fold = folded(started(), tokens(0, "ab"))
    assert fold.verdict(("other", "r1"), (Q, 8), PLAIN) == RunFresh(0, spoken=False)


def test_a_run_cut_off_goes_on_from_its_text() -> None:
    fold = folded(started(), tokens(0, "ab"), tokens(0, "ab"), tokens(2, "c"))
    assert fold.verdict(KEY, (Q, 7), PLAIN) == Resume((Logged((97, 98, 99), "abc"),), 1)


def test_every_choice_is_resumed_and_one_that_ended_stays_ended() -> None:
    fold = folded(started(0, 0, 0), tokens(0, "a", choice=1, last=True), tokens(0, "z"))
    verdict = fold.verdict(KEY, (Q, 7), Body(prompt="x", n=3))
    assert verdict == Resume((Logged((122,), "z"), Logged((97,), "a", "stop"), Logged()), 1)


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        (Body(prompt="x", presence_penalty=0.5), "penalties"),
        (Body(prompt="x", frequency_penalty=-0.5), "penalties"),
        (Body(prompt="x", response_format=ResponseFormat(type="json_object")), "response_format"),
    ],
)
def test_what_the_engine_cannot_continue_is_interrupted_once_it_was_visible(
    body: Body, feature: Feature
) -> None:
    fold = folded(started(), tokens(0, "ab"))
    assert fold.verdict(KEY, (Q, 7), body) == Interrupt((2,), feature, 1)
    assert fold.verdict(KEY, (Q, 7), body, FEATURES - {feature}) == Interrupt((2,), feature, 1)
    resumed = Resume((Logged((97, 98), "ab"),), 1)
    assert fold.verdict(KEY, (Q, 7), body, frozenset({feature})) == resumed
    assert folded(started()).verdict(KEY, (Q, 7), body) == RunFresh(1, spoken=True)


@pytest.mark.parametrize(
    ("truncated", "reason"), [(True, "expired_log"), (False, "missing_beginning")]
)
def test_a_beginning_that_is_gone_is_interrupted(truncated: bool, reason: str) -> None:
    fold = folded(tokens(4, "ef"), truncated=truncated)
    assert fold.verdict(KEY, (Q, 7), PLAIN) == Interrupt((0,), reason, 0)


def test_what_lies_behind_a_fence_is_not_resumed_yet_it_was_spoken() -> None:
    fold = Fold(0, Reader(), frozenset({Q}))
    fold.feed(0, Fence(epoch=5, qs=(Q,)))
    fold.feed(1, Events(events=(started(epoch=1), tokens(0, "ab", epoch=1))))
    assert fold.verdict(KEY, (Q, 7), PLAIN) == RunFresh(1, spoken=True)
