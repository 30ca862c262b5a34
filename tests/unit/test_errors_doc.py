"""The table of errors in the docs says what the code says."""

import re
from pathlib import Path

from core.errors import ERRORS

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("core", "producer_api", "consumers")


def documented() -> set[tuple[int, str]]:
    """(status, code) of every code in the table; a row may have several statuses."""
    section = (ROOT / "docs" / "http-api.md").read_text().partition("## Errors")[2]
    rows = re.findall(r"^\| ([\d, ]+) \| (.+?) \|", section, re.MULTILINE)
    found: set[tuple[int, str]] = set()
    for statuses, codes in rows:
        for code in re.findall(r"`(\w+)`", codes):
            status = ERRORS[code].status
            assert str(status) in statuses.split(", "), code
            found.add((status, code))
    return found


def test_every_error_stands_in_the_table_under_its_status() -> None:
    assert documented() == {(kind.status, code) for code, kind in ERRORS.items()}


def test_every_error_can_happen() -> None:
    files = [path for package in PRODUCT for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files if path.name != "errors.py")
    assert [it for it in ERRORS if f'"{it}"' not in code] == []
