import pytest

from core.text import StopScanner


def test_without_stops_all_text_is_visible_at_once() -> None:
    scanner = StopScanner(())
    assert scanner.feed("anything") == ("anything", False)
    assert scanner.feed(" at all", final=True) == (" at all", False)


def test_a_stop_string_and_what_follows_are_never_visible() -> None:
    scanner = StopScanner(("END",))
    assert scanner.feed("so far END and more") == ("so far ", True)
    assert scanner.feed("still more", final=True) == ("", True)
    assert scanner.stopped


def test_what_may_be_the_beginning_of_a_stop_string_is_withheld() -> None:
    scanner = StopScanner(("END",))
    assert scanner.feed("a E") == ("a ", False)
    assert scanner.held_text == "E"
    assert scanner.feed("N") == ("", False)
    assert scanner.feed("ORMOUS") == ("ENORMOUS", False)


def test_the_last_piece_withholds_nothing() -> None:
    scanner = StopScanner(("END",))
    assert scanner.feed("a EN", final=True) == ("a EN", False)


def test_a_stop_string_may_overlap_itself() -> None:
    scanner = StopScanner(("aab",))
    assert scanner.feed("a") == ("", False)
    assert scanner.feed("a") == ("", False)
    assert scanner.feed("a") == ("a", False)
    assert scanner.feed("b") == ("", True)


@pytest.mark.parametrize("text", ["xabcd", "xab"])
def test_the_stop_string_that_is_complete_first_wins(text: str) -> None:
    assert StopScanner(("abcd", "b")).feed(text) == ("xa", True)


def test_of_two_complete_at_the_same_character_the_longer_wins() -> None:
    assert StopScanner(("b", "ab")).feed("xab") == ("x", True)


def test_text_held_by_an_earlier_run_is_part_of_the_next_piece() -> None:
    scanner = StopScanner(("END",), held_text="EN")
    assert scanner.feed("D") == ("", True)


def test_text_held_by_an_earlier_run_may_be_a_whole_stop_string() -> None:
    assert StopScanner(("END",), held_text="x END y").feed("") == ("x ", True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert StopScanner(("",)).feed("text") == ("text", False)
