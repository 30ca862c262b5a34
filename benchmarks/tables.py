"""Tables in Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.results_file import spread


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A head, a rule, and the rows."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_repeats(repeats: Sequence[dict[str, Any]], name: str, digits: int = 0) -> str:
    """One figure over the repeats: median, lowest, highest."""
    return spread([it[name] for it in repeats], digits)


def mean_share(repeats: Sequence[dict[str, Any]], name: str) -> str:
    """The mean of a share over the repeats, as a percentage."""
    return f"{statistics.mean(it[name] for it in repeats):.1%}"
