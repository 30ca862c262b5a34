"""A benchmark that is cut off goes on where it was; `make bench` runs what is not done yet."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as house
from benchmarks import against_vllm, results_file
from benchmarks.against_vllm import WARM_UP
from benchmarks.results_file import FRESH, KEPT_IN, Run


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results_file, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(house, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(house, "code_state", lambda: "the code")
    monkeypatch.setenv(KEPT_IN, str(tmp_path / "kept"))
    return tmp_path


def fail() -> int:
    raise RuntimeError("cut off")


def test_what_was_measured_is_not_measured_again() -> None:
    first = Run("some", {"repeats": 2})
    assert first.once("a", lambda: 1) == 1
    with pytest.raises(RuntimeError):
        first.once("b", fail)
    second = Run("some", {"repeats": 2})
    assert second.once("a", fail) == 1
    assert second.once("b", lambda: 2) == 2


def test_with_other_settings_it_begins_anew() -> None:
    Run("some", {"repeats": 2}).once("a", lambda: 1)
    assert Run("some", {"repeats": 3}).once("a", lambda: 7) == 7


def test_once_it_is_kept_the_next_run_begins_anew(folders: Path) -> None:
    run = Run("some", {})
    run.keep({"a": run.once("a", lambda: 1)})
    kept = json.loads((folders / "kept" / "some.json").read_text())
    assert kept["figures"] == {"a": 1}
    assert kept["machine"]["system_call_ns"] > 0
    assert Run("some", {}).once("a", lambda: 7) == 7


def test_what_is_forgotten_is_measured_again() -> None:
    run = Run("some", {})
    run.once("a", lambda: 1)
    run.forget()
    assert Run("some", {}).once("a", lambda: 7) == 7


def test_a_comparison_with_vllm_goes_on_behind_its_last_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[tuple[str, list[int]]] = []

    def one_turn(_bench: Any, name: str, numbers: list[int], cases: Any) -> dict[str, Any]:
        if len(began) == 1:
            began.append(("cut off", numbers))
            raise RuntimeError("cut off")
        began.append((name, numbers))
        rounds = [{case: {"of": f"{name} {number}"} for case in cases} for number in numbers]
        return {"rounds": rounds, "idle_cpu_ms_per_second": {"api": 1.0}, "command": [name]}

    monkeypatch.setattr(against_vllm, "one_turn", one_turn)
    bench, cases = Any, dict.fromkeys(["c"], WARM_UP)
    with pytest.raises(RuntimeError):
        against_vllm.compare(Run("some", {}), bench, 3, cases)  # type: ignore[arg-type]
    figures = against_vllm.compare(Run("some", {}), bench, 3, cases)  # type: ignore[arg-type]
    assert [it[0] for it in began] == ["inferlog", "cut off", "vllm", "inferlog", "vllm"]
    for number, cases_of_round in enumerate(figures["rounds"]):
        assert cases_of_round["c"] == {
            arm: {"of": f"{arm} {number}"} for arm in ("inferlog", "vllm")
        }


def test_cases_take_turns_and_the_last_of_a_round_begins_the_next() -> None:
    seen = []

    def measure(case: str) -> str:
        seen.append(case)
        return case

    assert Run("some", {}).by_turns(["a", "b"], 3, str, measure) == ["a", "b", "b", "a", "a", "b"]
    assert seen == ["a", "b", "b", "a", "a", "b"]


def ran(monkeypatch: pytest.MonkeyPatch, names: list[str], failing: str = "") -> list[str]:
    """The modules that one call of the house runs."""
    seen: list[str] = []

    def one(_: house.House, bench: house.Bench) -> bool:
        seen.append(bench.module)
        return bench.module != failing

    monkeypatch.setattr(house.House, "_one", one)
    benches = [it for it in house.BENCHES if it.module in names]
    assert house.House(full=False).run(benches) == (1 if failing else 0)
    return seen


def test_the_house_runs_what_failed_or_was_left_and_forgets_only_when_all_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [it.module for it in house.BENCHES if not it.needs_vllm]
    monkeypatch.setattr(house, "BENCHES", [it for it in house.BENCHES if not it.needs_vllm])
    assert ran(monkeypatch, names, failing="cancels") == names
    assert ran(monkeypatch, ["pipeline"]) == [], "it was done, and so it stays"
    assert ran(monkeypatch, names) == ["cancels"]
    assert ran(monkeypatch, names) == names, "all was done: the next call begins anew"


def test_what_is_to_be_measured_afresh_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ran(monkeypatch, ["pipeline", "cancels"]) == ["pipeline", "cancels"]
    asked = house.House(full=False)
    asked.forget([it for it in house.BENCHES if it.module == "pipeline"])
    assert asked._done == ["cancels"]
    assert house.House(full=True)._done == []
    Run("some", {}).once("a", lambda: 1)
    monkeypatch.setenv(FRESH, asked._environ[FRESH])
    assert Run("some", {}).once("a", lambda: 2) == 2


def test_a_quick_look_leaves_what_a_longer_run_has_measured() -> None:
    Run("some", {"repeats": 5}).once("a", lambda: 1)
    quick = Run("some", {"repeats": 1})
    quick.keep({"a": quick.once("a", lambda: 2)})
    assert Run("some", {"repeats": 5}).once("a", fail) == 1


def test_a_run_with_other_settings_than_the_kept_one_replaces_nothing(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEPT_IN)
    monkeypatch.setattr(results_file, "RESULTS", folders / "results")
    monkeypatch.setattr(results_file, "QUICK_RESULTS", folders / "quick")
    whole = Run("some", {"repeats": 5, "cases": (1, 2)}).keep({"a": 1})
    assert whole.parent.name == "results"
    assert Run("some", {"repeats": 1, "cases": (1, 2)}).keep({"a": 2}).parent.name == "quick"
    assert json.loads(whole.read_text())["figures"] == {"a": 1}
    assert Run("some", {"repeats": 5, "cases": (1, 2)}).keep({"a": 3}) == whole


def test_help_names_every_benchmark() -> None:
    told = subprocess.run(
        ["make", "-s", "help"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    words = told.stdout.replace("bench-", " ").replace(",", " ").split()
    assert {it.module.removeprefix("against_") for it in house.BENCHES} <= set(words)
