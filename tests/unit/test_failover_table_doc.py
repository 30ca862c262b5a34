"""The table of what a failover does names a test for every row, and has a row for every test's case."""

import ast
import re
from pathlib import Path

from producer_api.parameters import RUN_BOTH
from tests.failover_rows import DRAWN, EXACT

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "failover-table.md"
CASES = {
    "test_a_cut_changes_nothing": set(EXACT),
    "test_what_is_drawn_goes_on": set(DRAWN),
}
NOT_OF_THE_ANSWER = {"model", "service_tier", "stream_options"}


def rows() -> list[tuple[str, list[tuple[str, str]]]]:
    """First cell of each row, and the tests (name, case or '') that its last cell names."""
    found = []
    for line in DOC.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("feature", "what"):
            found.append((cells[0], re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", cells[2])))
    return found


def known_tests() -> set[str]:
    """Of every test function of the tree."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_row_names_tests_that_exist() -> None:
    known = known_tests()
    assert len(rows()) > 15
    for feature, tests in rows():
        assert tests, feature
        assert [name for name, _ in tests if name not in known] == [], feature


def test_every_case_of_the_tests_has_a_row_and_no_row_a_case_that_is_gone() -> None:
    said = [pair for _, tests in rows() for pair in tests if pair[0] in CASES]
    assert set(said) == {(name, case) for name, cases in CASES.items() for case in cases}


def test_every_parameter_that_shapes_an_answer_has_a_row() -> None:
    text = " ".join(feature for feature, _ in rows())
    named = set(re.findall(r"`(\w+)`", text))
    assert RUN_BOTH - NOT_OF_THE_ANSWER - named == set()
