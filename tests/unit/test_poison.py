"""How often a request died, as histories on the log tell it."""

from typing import Any

from core.epochs import FenceLog
from core.poison import HISTORY_MAX, Life
from core.recovery import Fold, RunFresh
from core.stream import Reader
from schemas.fences import Acquired
from schemas.operations import Start
from schemas.replies import AnyEvent, Events, Fence, Released, Started, Tokens
from schemas.requests import COMPLETIONS, Body, RequestInfo

Q, OTHER = "requests.default.premium/0", "requests.default.free/0"
KEY = ("acme", "r1")
INFO = RequestInfo(endpoint=COMPLETIONS, model="m", tier="premium")
WHO: dict[str, Any] = {"id": "r1", "tenant": "acme", "q": Q, "offset": 7}


def started(epoch: int, starts: int = 1, count: int = 0) -> Started:
    return Started(**WHO, epoch=epoch, starts=starts, counts=(count,), info=INFO, worker="w")


def token(epoch: int, seq: int) -> Tokens:
    return Tokens(**WHO, epoch=epoch, seq=seq, token_ids=(1,), text="x")


def released(epoch: int) -> Released:
    return Released(**WHO, epoch=epoch)


def owners(*taken: tuple[int, str, str]) -> FenceLog:
    """A's as (epoch, incarnation, q)."""
    fences = FenceLog()
    for epoch, incarnation, q in taken:
        fences.feed(epoch, 0, Acquired(qs=(q,), incarnation=incarnation, ends=(0,)))
    return fences


def deaths(fences: FenceLog, *said: Fence | AnyEvent) -> int:
    """What the fold of these records counts, and says in its verdict."""
    fold = Fold(0, Reader(), frozenset({Q}), owners=fences)
    for position, it in enumerate(said):
        fold.feed(position, it if isinstance(it, Fence) else Events(events=(it,)))
    counted = fold.deaths((Q, 7))
    assert fold.verdict(KEY, (Q, 7), Body(prompt="x")).starts == counted  # type: ignore[union-attr]
    return counted


STRANGERS = owners((1, "a", Q), (2, "b", Q), (3, "c", Q), (4, "d", Q))


def test_what_was_never_started_never_died() -> None:
    assert deaths(STRANGERS) == 0


def test_each_start_of_an_owner_never_heard_of_again_was_a_death() -> None:
    assert deaths(STRANGERS, started(1)) == 1
    assert deaths(STRANGERS, started(1), started(2, 2), started(3, 3)) == 3


def test_owners_that_ran_it_at_once_and_were_killed_at_once_are_one_death() -> None:
    assert deaths(STRANGERS, started(1), started(2), started(3)) == 1
    assert deaths(STRANGERS, started(1), started(2), started(3, 2), started(4, 3)) == 3
    assert deaths(STRANGERS, started(1), started(2, 2), started(4), started(3, 3)) == 3


def test_a_start_behind_a_fence_was_run_and_counts() -> None:
    assert deaths(STRANGERS, Fence(epoch=2, qs=(Q,)), started(1)) == 1


def test_a_new_token_makes_earlier_deaths_forgotten_and_its_own_the_first() -> None:
    assert deaths(STRANGERS, started(1), started(2, 2), token(2, 0)) == 1
    history = (started(1), started(2, 2), token(2, 0), started(3, 2, 1))
    assert deaths(STRANGERS, *history) == 2


def test_a_token_that_is_not_new_is_no_progress() -> None:
    first = (started(1), token(1, 0))
    assert deaths(STRANGERS, *first, started(2, 2, 1), token(2, 0)) == 2
    assert deaths(STRANGERS, *first, started(2, 2, 1), token(2, 1)) == 1


def test_a_token_behind_a_fence_is_no_progress() -> None:
    history = (started(1), Fence(epoch=2, qs=(Q,)), token(1, 0), started(2, 2))
    assert deaths(STRANGERS, *history) == 2


def test_a_clean_hand_over_is_no_death() -> None:
    assert deaths(STRANGERS, started(1), released(1)) == 0
    assert deaths(STRANGERS, started(1), started(2, 2), released(2)) == 1


def test_an_owner_that_took_partitions_again_after_its_epoch_did_not_die() -> None:
    lives = owners((1, "a", Q), (2, "b", Q), (3, "a", OTHER))
    assert deaths(lives, started(1)) == 0
    assert deaths(lives, started(1), started(2, 2)) == 1, "b was not heard of again"


def test_an_owner_that_fenced_the_same_partition_anew_did_not_die() -> None:
    assert deaths(owners((1, "a", Q), (2, "a", Q)), started(1)) == 0


def test_what_an_owner_took_while_its_epoch_held_proves_nothing() -> None:
    assert deaths(owners((1, "a", Q), (2, "a", OTHER), (3, "b", Q)), started(1)) == 1


def test_an_owner_that_is_not_known_any_more_is_not_excused() -> None:
    assert deaths(owners((2, "b", Q)), started(1)) == 1


def test_a_start_that_is_stored_twice_is_one() -> None:
    assert deaths(STRANGERS, started(1), started(1)) == 1


def test_a_worker_whose_engine_died_goes_on_as_another_incarnation_and_counts() -> None:
    lives = owners((1, "a", Q), (2, "a'", Q), (3, "a''", Q))
    assert deaths(lives, started(1), started(2, 2)) == 2


def test_another_owner_took_one_for_dead_that_was_only_late() -> None:
    lives = owners((1, "a", Q), (2, "b", Q), (3, "a", OTHER))
    assert deaths(lives, started(1), started(2, 2), released(2)) == 0


def test_a_zombies_late_start_is_put_where_it_belongs() -> None:
    history = (started(2), token(2, 0), started(1))
    assert deaths(STRANGERS, *history) == 1, "it is older than the progress"


def test_the_history_is_bounded_and_told_by_rising_epoch() -> None:
    life = Life()
    for epoch in range(HISTORY_MAX + 5, 0, -1):
        life.started(started(epoch, 2))
    history = life.history()
    assert len(history) == HISTORY_MAX
    assert history[-1] == Start(epoch=HISTORY_MAX + 5, starts=2, worker="w")
    assert [it.epoch for it in history] == sorted(it.epoch for it in history)


def test_a_fold_without_fences_takes_nobody_for_alive() -> None:
    fold = Fold(0, Reader(), frozenset({Q}))
    fold.feed(0, Events(events=(started(1), started(2, 2))))
    assert fold.verdict(KEY, (Q, 7), Body(prompt="x")) == RunFresh(2, spoken=True)
