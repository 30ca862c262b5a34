"""Claims on an idempotency key, judged by append times in log order."""

from core.idempotency import ClaimBook
from schemas.operations import Claim

LIFE_SECONDS = 100.0


def claim(
    request_id: str, *, key: str = "k", tenant: str = "one", life_seconds: float = LIFE_SECONDS
) -> Claim:
    return Claim(
        tenant=tenant,
        key=key,
        fingerprint="f",
        request_id=request_id,
        q="requests.default.standard/0",
        life_seconds=life_seconds,
    )


def test_the_first_claim_of_a_key_wins_and_the_second_loses() -> None:
    book = ClaimBook()
    assert book.feed(1000, claim("a")).won
    assert not book.feed(1001, claim("b")).won
    winner = book.winner("one", "k")
    assert winner is not None
    assert winner.claim.request_id == "a"


def test_a_key_is_free_again_at_the_end_of_the_life_and_not_before() -> None:
    for append_ms, won in ((100_999, False), (101_000, True)):
        book = ClaimBook()
        book.feed(1000, claim("a"))
        assert book.feed(append_ms, claim("b")).won is won


def test_a_claim_that_lost_keeps_the_key_taken_for_its_own_life() -> None:
    book = ClaimBook()
    book.feed(0, claim("a"))
    assert not book.feed(99_000, claim("b")).won
    assert not book.feed(150_000, claim("c")).won, "b lost, and its life still runs"
    assert book.feed(250_000, claim("d")).won


def test_a_loser_whose_winner_has_ended_has_no_winner_to_follow() -> None:
    book = ClaimBook()
    book.feed(0, claim("a"))
    book.feed(99_000, claim("b"))
    book.feed(150_000, claim("c"))
    assert book.winner("one", "k") is None
    live = book.live("one", "k", 150_001)
    assert live is not None
    assert not live.won


def test_live_names_the_winner_while_its_life_runs_and_nobody_afterwards() -> None:
    book = ClaimBook()
    book.feed(0, claim("a"))
    book.feed(10, claim("b"))
    live = book.live("one", "k", 99_999)
    assert live is not None
    assert live.claim.request_id == "a"
    assert book.live("one", "k", 100_010) is None


def test_tenants_and_keys_do_not_meet() -> None:
    book = ClaimBook()
    assert book.feed(0, claim("a")).won
    assert book.feed(0, claim("b", tenant="two")).won
    assert book.feed(0, claim("c", key="other")).won
    assert (book.count("one"), book.count("two"), book.count("three")) == (2, 1, 0)


def test_prune_forgets_what_has_ended_whatever_the_order_of_lives() -> None:
    book = ClaimBook()
    book.feed(0, claim("long", key="a", life_seconds=1000))
    book.feed(0, claim("short", key="b", life_seconds=1))
    book.feed(0, claim("middle", key="c", life_seconds=10))
    book.prune(10_000)
    assert book.count("one") == 1
    assert book.live("one", "a", 10_000) is not None
    book.prune(1_000_000)
    assert (book.count("one"), len(book)) == (0, 0)


def test_memory_follows_the_claims_whose_life_runs() -> None:
    book = ClaimBook()
    for number in range(1000):
        book.feed(number * 1000, claim(str(number), key=str(number), life_seconds=5.0))
        book.prune(number * 1000)
    assert len(book) == book.count("one") == 5
