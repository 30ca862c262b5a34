"""The table of limits in the docs says what the code says."""

import dataclasses
import re
from pathlib import Path

from core.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "topics", "producer_api", "consumers", "inferlog")
ROW = re.compile(r"\| `(\w+)` \| (\S+) \| (\S[^|]*) \| (\S[^|]*) \|")


def rows() -> list[tuple[str, str, str]]:
    """Name, default and unit of each row, in order."""
    lines = (ROOT / "docs" / "limits.md").read_text().splitlines()
    body = [line for line in lines if line.startswith("| `")]
    matches = [ROW.fullmatch(line) for line in body]
    assert None not in matches, [line for line, it in zip(body, matches, strict=True) if not it]
    return [(it[1], it[2], it[3].replace("`", "")) for it in matches if it]


def test_every_limit_stands_in_the_table_once_in_the_order_of_the_code() -> None:
    assert [name for name, _, _ in rows()] == [field.name for field in dataclasses.fields(Limits)]


def test_defaults_are_those_of_the_code() -> None:
    said = {name: default for name, default, _ in rows()}
    assert said == {field.name: str(field.default) for field in dataclasses.fields(Limits)}


def test_units_are_those_that_help_tells() -> None:
    said = {name: unit for name, _, unit in rows()}
    assert said == {it.name: it.metadata["unit"] for it in dataclasses.fields(Limits)}


def test_a_limit_is_read_somewhere() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files if path.name != "limits.py")
    read = set(re.findall(r"(?:limits|LIMITS)\.(\w+)", code))
    assert {"text_bytes", "publish_seconds"} <= read
    assert [name for name, _, _ in rows() if name not in read] == []
