"""The tables of docs/performance.md are those of the kept results, and say where they are from."""

import json
import statistics

from benchmarks.report import PAGE, SCALING_PAGE, SHOWN, filled, filled_scaling
from benchmarks.results_file import RESULTS


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


def test_accepting_a_request_costs_no_more_than_was_promised() -> None:
    figures = json.loads((RESULTS / "pipeline.json").read_text())["figures"]
    costs_us = [it["api_cpu_us_per_request"] for it in figures["at_once"]["accept"]]
    assert 0 < statistics.median(costs_us) <= 400
