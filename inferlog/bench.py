"""`inferlog bench compare OLD NEW`: did it become faster, slower, or is it noise?"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inferlog.client_settings import CompareCommand
from inferlog.comparison import Change, compare, differences
from inferlog.problems import CommandFailed, WrongUsage
from inferlog.terminal import console
from runtime.service import EXIT_OK

RESULT_BYTES_MAX = 64 * 1024 * 1024


def _read(path: Path) -> dict[str, Any]:
    """Raises CommandFailed."""
    try:
        if path.stat().st_size > RESULT_BYTES_MAX:
            raise CommandFailed(f"{path} is larger than {RESULT_BYTES_MAX} bytes: not a result")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WrongUsage(f"{path} is no result of a benchmark: {error}") from None
    if not isinstance(found, dict) or not {"benchmark", "figures"} <= found.keys():
        raise WrongUsage(f"{path} is no result of a benchmark (see benchmarks/results)")
    return found


def compare_results(command: CompareCommand) -> int:
    """Prints the figures that changed; with `--all` every one."""
    old, new = _read(command.old), _read(command.new)
    if old["benchmark"] != new["benchmark"]:
        raise WrongUsage(
            f"these are results of different benchmarks: {old['benchmark']} and {new['benchmark']}"
        )
    changes, unlike = compare(old, new), differences(old, new)
    if command.json:
        print(
            json.dumps(
                {
                    "benchmark": new["benchmark"],
                    "unlike": unlike,
                    "figures": [asdict(it) | {"ratio": it.ratio} for it in changes],
                }
            )
        )
        return EXIT_OK
    for line in unlike:
        print(f"warning: {line}", file=sys.stderr)
    shown = [it for it in changes if command.all or it.verdict != "same"]
    if shown:
        _print(shown)
    same = sum(it.verdict == "same" for it in changes)
    print(f"{same} of {len(changes)} figures are the same within their spread")
    return EXIT_OK


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return f"{middle} (once)"
    return f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _print(changes: list[Change]) -> None:
    from rich.table import Table  # noqa: PLC0415  (a quarter of a second, only for a table)

    table = Table("figure", "old", "new", "new / old", "")
    for it in changes:
        ratio = "" if it.ratio is None else f"{it.ratio:.2f}"
        table.add_row(it.figure, _range(it.old), _range(it.new), ratio, it.verdict)
    console().print(table)
