"""The table of the fault matrix names a test for every row, and each of those says of which row it is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "failure-scenarios.md"
ROWS = range(1, 26)
OF_NO_REAL_PROCESS = (24, 25)


def table() -> dict[int, set[str]]:
    """Row -> the tests it names."""
    found: dict[int, set[str]] = {}
    for line in DOC.read_text().splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            assert int(match[1]) not in found, line
            found[int(match[1])] = set(re.findall(r"`(test_\w+)`", line))
    return found


def docstrings_in(folder: str) -> dict[str, str]:
    """Name of every test function there -> its first line of documentation."""
    found: dict[str, str] = {}
    for path in (ROOT / folder).rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def rows_of(documentation: str) -> list[int]:
    """`Row 6: …` and `Rows 7 and 8: …`."""
    said = re.match(r"Rows? (\d+(?:(?:, | and )\d+)*)\b", documentation)
    return [int(number) for number in re.findall(r"\d+", said[1])] if said else []


def test_every_row_names_tests_that_exist() -> None:
    known = docstrings_in("tests")
    rows = table()
    assert sorted(rows) == list(ROWS)
    assert {row: names - known.keys() for row, names in rows.items() if names - known.keys()} == {}
    assert [row for row, names in rows.items() if not names] == []


def test_tests_of_the_matrix_say_the_rows_that_the_table_has_them_in() -> None:
    said: dict[int, set[str]] = {}
    for name, documentation in docstrings_in("tests/faults").items():
        for row in rows_of(documentation):
            said.setdefault(row, set()).add(name)
    rows = table()
    assert said == {row: rows[row] for row in rows if row not in OF_NO_REAL_PROCESS}
