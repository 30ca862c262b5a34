"""What `fences` says of owners, and where a late reader begins."""

from core.epochs import FenceLog
from schemas.fences import Acquired, Fenced, Still

Q, OTHER = "requests.default.premium/0", "requests.default.premium/1"


def acquired(*qs: str, ends: tuple[int, ...]) -> Acquired:
    return Acquired(qs=qs, incarnation="a", ends=ends)


def test_the_offset_of_the_acquired_record_is_the_epoch() -> None:
    fences = FenceLog()
    assert fences.highest(Q) == -1
    assert fences.owner(Q) is None
    fences.feed(4, 0, acquired(Q, ends=(0,)))
    fences.feed(9, 0, acquired(Q, OTHER, ends=(3,)))
    assert (fences.highest(Q), fences.highest(OTHER)) == (9, 9)
    owner = fences.owner(Q)
    assert owner is not None
    assert owner.ends_before == (3,)
    assert owner.ends_after is None


def test_a_reader_behind_all_fences_of_an_owner_begins_where_it_wants() -> None:
    fences = FenceLog()
    fences.feed(0, 0, acquired(Q, ends=(10, 20)))
    fences.feed(1, 0, Fenced(epoch=0, ends=(15, 25)))
    assert fences.late_start(0, 15) == ({Q: 0}, 15)
    assert fences.late_start(1, 25) == ({Q: 0}, 25)


def test_a_reader_amid_the_fences_begins_at_the_ends_before_them() -> None:
    fences = FenceLog()
    fences.feed(0, 0, acquired(Q, ends=(10,)))
    assert fences.late_start(0, 12) == ({}, 10), "not fenced yet: it may lie anywhere from there on"
    fences.feed(1, 0, Fenced(epoch=0, ends=(15,)))
    assert fences.late_start(0, 14) == ({}, 10)
    assert fences.late_start(0, 10) == ({}, 10), "all its fences lie ahead"


def test_a_later_owner_that_is_fenced_spares_the_earlier_one() -> None:
    fences = FenceLog()
    fences.feed(0, 0, acquired(Q, ends=(1,)))  # died before its second record
    fences.feed(1, 0, acquired(Q, ends=(5,)))
    fences.feed(2, 0, Fenced(epoch=1, ends=(8,)))
    assert fences.late_start(0, 20) == ({Q: 1}, 20)
    assert fences.late_start(0, 7) == ({}, 1)


def test_the_first_fenced_record_counts_and_one_of_an_unknown_epoch_says_nothing() -> None:
    fences = FenceLog()
    fences.feed(3, 0, acquired(Q, ends=(1,)))
    fences.feed(4, 0, Fenced(epoch=3, ends=(5,)))
    fences.feed(5, 0, Fenced(epoch=3, ends=(50,)))
    fences.feed(6, 0, Fenced(epoch=1, ends=(7,)))
    assert fences.late_start(0, 5) == ({Q: 3}, 5)


def test_a_repeat_stands_for_records_that_retention_took() -> None:
    fences = FenceLog()
    fences.feed(90, 5, Still(epoch=3, qs=(Q,), incarnation="a", ends=(7,)))
    assert fences.highest(Q) == 3
    assert fences.late_start(0, 7) == ({Q: 3}, 7)


def test_a_repeat_completes_and_refreshes_what_is_known() -> None:
    fences = FenceLog()
    fences.feed(3, 5, acquired(Q, ends=(1,)))
    fences.feed(8, 50, acquired(Q, ends=(2,)))
    fences.feed(9, 60, Still(epoch=3, qs=(Q,), incarnation="a", ends=(4,)))
    fences.prune(before_ms=55)
    assert fences.highest(Q) == 8, "a repeat of an older owner raises nothing"
    assert fences.late_start(0, 4) == ({Q: 3}, 2)


def test_pruning_forgets_all_but_the_highest_of_each_q() -> None:
    fences = FenceLog()
    fences.feed(0, 10, acquired(Q, OTHER, ends=(0,)))
    fences.feed(1, 20, acquired(Q, ends=(5,)))
    fences.feed(2, 30, acquired(Q, ends=(9,)))
    fences.prune(before_ms=25)
    assert (fences.highest(Q), fences.highest(OTHER)) == (2, 0)
    assert fences.late_start(0, 30) == ({}, 0)
    fences.feed(3, 40, acquired(OTHER, ends=(12,)))
    fences.prune(before_ms=25)
    assert fences.late_start(0, 30) == ({}, 9), "epochs 0 and 1 are forgotten"


def test_a_partition_beyond_the_list_is_not_spoken_of() -> None:
    fences = FenceLog()
    fences.feed(0, 0, acquired(Q, ends=(10,)))
    fences.feed(1, 0, Fenced(epoch=0, ends=(15,)))
    assert fences.late_start(1, 99) == ({}, 99)


def test_an_owner_is_known_to_have_lived_on_once_it_is_heard_of_after_its_epoch() -> None:
    fences = FenceLog()
    fences.feed(1, 0, Acquired(qs=("q",), incarnation="a", ends=(0,)))
    fences.feed(2, 0, Acquired(qs=("other",), incarnation="a", ends=(0,)))
    fences.feed(3, 0, Acquired(qs=("q",), incarnation="b", ends=(0,)))
    assert not fences.lived_on("q", 1), "what it took before proves nothing"
    assert not fences.lived_on("q", 9)
    fences.feed(4, 0, Acquired(qs=("third",), incarnation="a", ends=(0,)))
    assert fences.lived_on("q", 1)
    assert not fences.lived_on("q", 3)
    fences.prune(1)
    assert not fences.lived_on("q", 1), "forgotten"
