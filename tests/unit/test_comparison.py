"""`inferlog bench compare`: which figures changed, and by more than their spread."""

import json
from pathlib import Path
from typing import Any

import pytest

from inferlog.bench import compare_results
from inferlog.client_settings import CompareCommand
from inferlog.comparison import compare, differences, series
from inferlog.problems import CommandFailed, WrongUsage


def result(figures: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {"benchmark": "pipeline", "figures": figures, **other}


def repeats(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return {it.figure: it.verdict for it in compare(result(old), result(new))}


def test_of_the_trials_of_a_repeat_percentiles_are_compared() -> None:
    """Twice as long, but for one outlier, is worse: 0.9 would have hidden it."""

    def rounds(seconds: float) -> dict[str, Any]:
        trials = [seconds + i / 10_000 for i in range(99)] + [0.9]
        return {"seconds": [{"beside": trials} for _ in range(3)]}

    assert set(series(rounds(0.1))) == {"seconds.beside.p50", "seconds.beside.p95"}
    assert set(verdicts(rounds(0.1), rounds(0.2)).values()) == {"worse"}
    assert set(verdicts(rounds(0.1), rounds(0.1)).values()) == {"same"}


def test_what_names_a_case_is_a_number() -> None:
    figures = {
        "cases": [{"suspects": 1, "beside": 0, "s": 3}, {"suspects": 1, "beside": 9, "s": 4}]
    }
    assert series(figures) == {
        "cases[suspects=1,beside=0].s": [3],
        "cases[suspects=1,beside=9].s": [4],
    }


def test_two_readings_of_one_machines_speed_are_no_difference() -> None:
    was, near, far = ({"machine": {"system_call_ns": ns}} for ns in (118.0, 121.0, 220.0))
    assert differences(was, near) == []
    assert len(differences(was, far)) == 1


def test_entries_of_a_list_are_repeats_unless_they_name_a_case() -> None:
    figures = {
        "accept": repeats("api_cpu_us_per_request", 1, 2),
        "cases": [
            {"depth": 10, "worker_bytes": 3},
            {"depth": 10, "worker_bytes": 4},
            {"depth": 99, "worker_bytes": 5, "kinds": ["a", "b"], "ok": True},
        ],
    }
    assert series(figures) == {
        "accept.api_cpu_us_per_request": [1, 2],
        "cases[depth=10].worker_bytes": [3, 4],
        "cases[depth=99].worker_bytes": [5],
    }


@pytest.mark.parametrize(
    ("name", "old", "new", "verdict"),
    [
        ("requests_per_second", (1, 3), (2, 4), "same"),
        ("requests_per_second", (1, 2), (3, 4), "better"),
        ("tokens_per_api_cpu_second", (3, 4), (1, 2), "worse"),
        ("api_cpu_us_per_request", (1, 2), (3, 4), "worse"),
        ("first_token_seconds", (3, 4), (1, 2), "better"),
        ("requests", (3, 4), (1, 2), "less"),
        ("requests_per_second", (1,), (3, 4), "more"),
    ],
)
def test_a_change_is_what_lies_outside_the_spread(
    name: str, old: tuple[float, ...], new: tuple[float, ...], verdict: str
) -> None:
    assert verdicts({"x": repeats(name, *old)}, {"x": repeats(name, *new)}) == {
        f"x.{name}": verdict
    }


def test_what_only_one_of_them_has_is_named() -> None:
    assert verdicts({"was": [1, 2]}, {"is": [1, 2]}) == {"is": "new", "was": "gone"}


def test_a_ratio_needs_both_and_no_zero() -> None:
    changes = compare(result({"a": [0, 0], "b": [2, 2], "c": 1}), result({"a": [1], "b": [3, 3]}))
    assert {it.figure: it.ratio for it in changes} == {"a": None, "b": 1.5, "c": None}


def test_other_settings_machines_and_versions_are_told_loads_are_not() -> None:
    old = result({}, settings={"repeats": 3}, machine={"cores": 2, "load_average_before": [1]})
    new = result({}, settings={"repeats": 5}, machine={"cores": 2, "load_average_before": [9]})
    assert differences(old, new) == ["settings: repeats was 3 and is 5"]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_the_command_shows_what_changed_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"wait_seconds": [1.0, 2.0], "cpu_us_per_request": [10.0, 11.0]}
    later = {"wait_seconds": [1.5, 2.0], "cpu_us_per_request": [20.0, 21.0]}
    old = written(tmp_path, "old.json", json.dumps(result(kept)))
    new = written(tmp_path, "new.json", json.dumps(result(later)))
    assert compare_results(CompareCommand(old=old, new=new)) == 0
    shown = capsys.readouterr().out
    assert "cpu_us_per_request" in shown
    assert "worse" in shown
    assert "wait_seconds" not in shown
    assert "1 of 2 figures are the same within their spread" in shown

    assert compare_results(CompareCommand(old=old, new=new, json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [it["verdict"] for it in found["figures"]] == ["same", "worse"]


@pytest.mark.parametrize("content", ["no json", "[]", '{"benchmark": "x"}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, "x.json", content)
    with pytest.raises(CommandFailed):
        compare_results(CompareCommand(old=path, new=path))


def test_results_of_different_benchmarks_are_refused(tmp_path: Path) -> None:
    old = written(tmp_path, "a.json", json.dumps(result({})))
    new = written(tmp_path, "b.json", json.dumps(result({}) | {"benchmark": "backlog"}))
    with pytest.raises(WrongUsage, match="different benchmarks"):
        compare_results(CompareCommand(old=old, new=new))
