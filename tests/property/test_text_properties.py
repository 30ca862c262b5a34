"""However text is cut into pieces, and wherever one scanner takes over from another."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from core.text import StopScanner

# few letters, so that stop strings are met, overlap themselves and contain one another
TEXT = st.text("abc", max_size=40)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def pieces(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(borders)]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first end of any stop string, the longest of those."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_every_cutting_shows_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    shown = "".join([scanner.feed(piece)[0] for piece in pieces(text, cuts)])
    shown += scanner.feed("", final=True)[0]
    assert (shown, scanner.stopped) == expected(text, stops)


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_what_is_shown_never_has_to_be_taken_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces(text, cuts):
        shown += scanner.feed(piece)[0]
        assert expected(text, stops)[0].startswith(shown)


@given(TEXT, STOPS, st.integers(0, 40), st.integers(0, 40))
def test_a_scanner_goes_on_where_another_was_cut_off(
    text: str, stops: list[str], cut: int, lag: int
) -> None:
    """What was shown is all the second one is told, and it may lag behind what could be shown."""
    cut = cut % (len(text) + 1)
    first = StopScanner(stops)
    could_show, stopped = first.feed(text[:cut])
    shown = could_show[: max(0, len(could_show) - lag)]
    second = StopScanner(stops, held_text=text[len(shown) : cut])
    rest = second.feed(text[cut:], final=True)[0]
    assert shown + rest == expected(text, stops)[0]
    assert second.stopped or not stopped


@given(TEXT, STOPS)
def test_less_than_the_longest_stop_string_is_withheld(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    scanner.feed(text)
    assert len(scanner.held_text) < max([len(stop) for stop in stops], default=1)
