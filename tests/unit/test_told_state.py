"""`inferlog up` tells other commands its process ids, also after a disk that was full."""

import asyncio
import errno
from pathlib import Path

import pytest

from inferlog import stack as stack_module
from inferlog.settings import UpCommand
from inferlog.stack import Stack


async def test_a_full_disk_ends_nobody_and_the_state_is_told_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "STATE_RETRY_SECONDS", 0.01)
    said: list[str] = []
    stack = Stack(UpCommand(engine="scripted", data_dir=tmp_path), said.append, lambda _: None)
    tries = 0

    def write_state() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stack, "write_state", write_state)
    telling = asyncio.create_task(stack._tell_changes())
    stack._pids_changed()
    async with asyncio.timeout(5):
        while tries < 3:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert tries == 3, "told once there was room, and not again before something changes"
    assert len(said) == 1, "and said once"
    assert "No space left" in said[0]
    assert not telling.done()
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
