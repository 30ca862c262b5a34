"""Replicas that start at different points of `claims` agree on everything that can still matter."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from core.idempotency import ClaimBook, Judged
from schemas.operations import Claim

LIFE_MAX_SECONDS = 50

Appends = list[tuple[int, int, int]]

appends = st.lists(
    st.tuples(
        st.integers(0, 60_000),  # ms since the append before
        st.integers(0, 1),  # key
        st.integers(1, LIFE_MAX_SECONDS),  # life in seconds
    ),
    max_size=40,
)


def records(steps: Appends) -> list[tuple[int, Claim]]:
    now_ms, found = 1_000_000, []
    for number, (gap_ms, key, life_seconds) in enumerate(steps):
        now_ms += gap_ms
        found.append(
            (
                now_ms,
                Claim(
                    tenant="one",
                    key=str(key),
                    fingerprint="f",
                    request_id=str(number),
                    q="requests.default.standard/0",
                    life_seconds=float(life_seconds),
                ),
            )
        )
    return found


def answer(judged: Judged | None) -> tuple[str, bool] | None:
    """What a client is told by: the request that holds the key, or that nobody can tell."""
    if judged is None:
        return None
    return (judged.claim.request_id, True) if judged.won else ("", False)


@given(steps=appends, start_after_ms=st.integers(0, 200_000), prune=st.booleans())
def test_a_replica_that_starts_two_lives_back_agrees_from_its_start_on(
    steps: Appends, start_after_ms: int, prune: bool
) -> None:
    log = records(steps)
    started_ms = 1_000_000 + start_after_ms
    view_ms = started_ms - 2 * LIFE_MAX_SECONDS * 1000
    early, late = ClaimBook(), ClaimBook()
    for append_ms, claim in log:
        verdict = early.feed(append_ms, claim)
        if append_ms < view_ms:
            continue
        late_verdict = late.feed(append_ms, claim)
        if append_ms < started_ms:
            continue
        if prune:
            late.prune(append_ms)
        assert late_verdict.won is verdict.won
        assert answer(late.winner("one", claim.key)) == answer(early.winner("one", claim.key))
        for key in ("0", "1"):
            assert answer(late.live("one", key, append_ms)) == answer(
                early.live("one", key, append_ms)
            )


@given(steps=appends)
def test_lives_of_winners_of_one_key_never_overlap(steps: Appends) -> None:
    book = ClaimBook()
    winners: dict[str, list[Judged]] = {}
    for append_ms, claim in records(steps):
        judged = book.feed(append_ms, claim)
        if judged.won:
            winners.setdefault(claim.key, []).append(judged)
    for won in winners.values():
        for earlier, later in itertools.pairwise(won):
            assert earlier.ends_ms <= later.append_ms


@given(steps=appends)
def test_counts_are_those_of_the_claims_that_are_held(steps: Appends) -> None:
    book = ClaimBook()
    fed: list[Judged] = []
    for append_ms, claim in records(steps):
        fed.append(book.feed(append_ms, claim))
        book.prune(append_ms)
        running = [it for it in fed if it.ends_ms > append_ms]
        assert book.count("one") == len(book) == len(running)
