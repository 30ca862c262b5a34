"""The tables of docs/performance.md are those of the kept results, and say where they are from."""

import json

import pytest

from benchmarks.report import PAGE, SCALING_PAGE, SHOWN, filled, filled_scaling
from benchmarks.results_file import RESULTS
from benchmarks.summary_report import BARS, Bar


def test_the_tables_are_made_from_the_kept_results() -> None:
    page = PAGE.read_text()
    assert filled(page) == page, "python -m benchmarks.report makes them anew"
    page = SCALING_PAGE.read_text()
    assert filled_scaling(page) == page, "python -m benchmarks.report makes them anew"


def test_every_result_has_a_place_on_the_page_and_names_its_machine() -> None:
    page = PAGE.read_text()
    for name in SHOWN:
        assert page.count(f"<!-- results:{name} -->") == page.count(f"<!-- end:{name} -->") == 1
        kept = json.loads((RESULTS / f"{name}.json").read_text())
        assert kept["machine"]["cores"] > 0
        assert kept["commit"]
        assert len(kept["machine"]["load_average_before"]) == 3


def test_no_token_has_a_record_of_its_own_when_many_stream() -> None:
    figures = json.loads((RESULTS / "pipeline.json").read_text())["figures"]
    for case in ("paced_64", "paced_256"):
        assert all(it["reply_records_per_token"] < 0.25 for it in figures["paced"][case])
        assert all(it["reply_records_per_token"] > 0 for it in figures["paced"][case])


@pytest.mark.parametrize("bar", [it for it in BARS if it.must is not None], ids=lambda it: it.label)
def test_what_must_be_is_so_in_the_kept_results(bar: Bar) -> None:
    assert all(rounds for rounds in bar.figures())
    assert bar.is_met(), f"{bar.row()}: what limits it?"


def test_a_bar_is_not_met_by_a_median_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]]
    monkeypatch.setattr(Bar, "figures", lambda _: rounds)
    for at_least, met in (
        (False, [(2.0, True), (1.9, False)]),
        (True, [(1.0, True), (1.1, False)]),
    ):
        for must, is_met in met:
            bar = Bar("it", "pipeline", lambda _: [], must=must, at_least=at_least)
            assert bar.is_met() is is_met
