"""Two checkouts under the same load, by turns: what is run where, and what is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkouts


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    for name in ("old", "new"):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
    return [str(tmp_path / "old"), str(tmp_path / "new")]


def test_the_old_one_begins_and_ends_and_medians_are_told(
    two: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        ran.append((how["cwd"].name, how["env"]["PYTHONPATH"] == str(how["cwd"]), words[-1]))
        us = 100 if how["cwd"].name == "old" else 80
        rounds = [{"accept, api": us - 1}, {"accept, api": us}, {"accept, api": us + 5}]
        return subprocess.CompletedProcess(words, 0, "a line\n" + json.dumps(rounds) + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["checkouts", *two, "--case", "accept"])
    checkouts.main()
    assert ran == [(name, True, "accept") for name in ("old", "new", "new", "old")]
    said = capsys.readouterr().out
    assert "100 (99 to 105)" in said
    assert "80 (79 to 85)  0.80" in said


def test_a_folder_that_is_no_checkout_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["checkouts", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        checkouts.main()
    assert "name two checkouts" in capsys.readouterr().err


def test_a_turn_that_fails_ends_it(two: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["checkouts", *two])
    with pytest.raises(SystemExit, match="the turn failed"):
        checkouts.main()
