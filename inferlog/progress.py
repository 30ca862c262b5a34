"""A progress bar on a terminal, a few lines elsewhere."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

from inferlog.terminal import tell

TELL_SECONDS = 10.0
HELD_LINES_MAX = 100


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with how much is done so far."""
    if not sys.stderr.isatty():
        step = max(1, total // 5)

        def line(done: int) -> None:
            if done % step == 0 or done == total:
                tell(f"{title}: {done} of {total}")

        yield line
        return
    from rich.console import Console  # noqa: PLC0415  (only on a terminal)
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.asynccontextmanager
async def waiting(title: str) -> AsyncIterator[None]:
    """Tells how long it has been waited: as a clock on a terminal, a line now and then elsewhere."""
    began_s = time.monotonic()

    async def lines() -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            tell(f"{title}: {time.monotonic() - began_s:.0f} s")

    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415  (only on a terminal)
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as clock:
            clock.add_task(title, total=None)
            yield
        return
    telling = asyncio.create_task(lines())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


class Reports:
    """A `Report` that can be held back, so that no line of it falls into a sentence."""

    def __init__(self, stamp: Callable[[str], str]) -> None:
        self._stamp = stamp
        self._held: list[str] | None = None

    def __call__(self, line: str) -> None:
        """Says it now, or when it is no longer held back."""
        if self._held is None:
            tell(self._stamp(line))
        elif len(self._held) < HELD_LINES_MAX:
            self._held.append(self._stamp(line))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds back inside; says everything, with the times at which it happened, at the end."""
        self._held = []
        try:
            yield
        finally:
            lines, self._held = self._held, None
            for line in lines:
                tell(line)
