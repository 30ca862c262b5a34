import pytest

from benchmarks.against_litellm import Name, Repeat, added, ratios
from benchmarks.baseline_report import show_litellm


def repeat(**cpu_us: float) -> Repeat:
    costs = {f"{part}_cpu_us_per_request": us for part, us in {"client": 40.0, **cpu_us}.items()}
    return {"requests_per_second": 1000.0, "tokens_per_second": 16000.0, **costs}


OURS = repeat(api=200.0, worker=100.0, broker=500.0)
THEIRS = repeat(proxy=6000.0, upstream=150.0)
FLOOR = repeat(service=120.0)
BY_WAY: dict[Name, list[Repeat]] = {"inferlog": [OURS], "litellm": [THEIRS], "plain": [FLOOR]}


def test_requests_per_cpu_second_are_compared_three_ways() -> None:
    found = ratios([OURS, OURS], [THEIRS, THEIRS])
    assert found["gateway"] == pytest.approx([30.0, 30.0])
    assert found["same_work"] == pytest.approx([20.5, 20.5])
    assert found["least_favourable"] == pytest.approx([20.0, 20.0])


def test_what_is_added_counts_all_that_serves_less_the_floor() -> None:
    assert added(BY_WAY) == {"inferlog": [180.0], "litellm": [6030.0]}


def test_the_table_shows_every_part_and_ratio() -> None:
    shown = show_litellm(
        {
            "cases": {"buffered": BY_WAY},
            "ratios": {"buffered": ratios([OURS], [THEIRS])},
            "added_cpu_us_per_request": {"buffered": added(BY_WAY)},
        }
    )
    for cell in ("broker 500", "proxy 6,000", "upstream 150", "service 120", "| 20.5 (20.5"):
        assert cell in shown
