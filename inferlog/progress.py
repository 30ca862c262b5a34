"""A progress bar on a terminal, a few lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with how much is done so far."""
    if not sys.stderr.isatty():
        step = max(1, total // 5)

        def line(done: int) -> None:
            if done % step == 0 or done == total:
                print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console  # noqa: PLC0415  (only on a terminal)
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
