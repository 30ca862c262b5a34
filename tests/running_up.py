"""`inferlog up` as a process of its own, with the scripted engine, for tests that kill parts of it."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Self

from inferlog.data_dir import DataDir, UpState, first_key
from inferlog.local_ports import any_free

READY_SECONDS = 90.0


def clean_environ() -> dict[str, str]:
    """This process's environment without the variables of Inferlog."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERLOG_")}
    if cache := os.environ.get("INFERLOG_CACHE_DIR"):
        kept["INFERLOG_CACHE_DIR"] = cache
    return kept


class RunningUp:
    """`async with RunningUp(folder, *words)`: ready inside, ended with all its children after it."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self._words = words
        self._output = folder / "up.txt"

    def said(self) -> str:
        """All that it printed so far."""
        return self._output.read_text()

    @property
    def state(self) -> UpState:
        """What it tells other commands."""
        state = DataDir(self.folder).read_state()
        assert state is not None
        return state

    def headers(self) -> dict[str, str]:
        """The key, for its API."""
        return {"Authorization": f"Bearer {first_key(self.folder / 'api-keys')}"}

    async def __aenter__(self) -> Self:
        ports = ("--port", str(any_free("127.0.0.1", 4)), "--drain-seconds", "1")
        metrics = ("--metrics-port", str(any_free("127.0.0.1", 4)))
        command = (sys.executable, "-m", "inferlog", "up", "--engine", "scripted")
        where = ("--data-dir", str(self.folder), *ports, *metrics)
        with self._output.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *command, *where, *self._words, stdout=out, stderr=out, env=clean_environ()
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while "Inferlog is up." not in self.said():
                    assert self._process.returncode is None, self.said()
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 60)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
