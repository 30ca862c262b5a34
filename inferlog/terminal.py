"""What the terminal is: how wide, what it can show, whether it is still there."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 200
"""A table in a file or a pipe is not cut to the 80 columns of a terminal that is not there."""


def console() -> "Console":
    """Where tables are printed."""
    from rich.console import Console  # noqa: PLC0415  (a quarter of a second, only for a table)

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PIPED_COLUMNS)


def tell(line: str) -> None:
    """A line on standard error.

    A terminal that is gone, or a full disk, must not keep the rest from being ended in order.
    """
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def show_anything() -> None:
    """Lets output hold what the locale's encoding does not: as `?`, where it would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
