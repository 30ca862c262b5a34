"""How many requests a worker picks up in one turn of its event loop."""

import asyncio

import pytest

from consumers.inference.tier import AT_ONCE
from tests.memory_stack import MemoryStack
from topics.memory_group import MemoryMember
from topics.ports import Record


async def test_no_more_are_asked_for_than_one_turn_may_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    read = MemoryMember.read

    async def noting(
        self: MemoryMember, max_wait_seconds: float = 0.5, max_records: int = 500
    ) -> list[Record]:
        asked.append(max_records)
        return await read(self, max_wait_seconds, max_records)

    monkeypatch.setattr(MemoryMember, "read", noting)
    stack = await MemoryStack().start()
    worker = await stack.worker(f"slots={2 * AT_ONCE}")
    assert worker.worker is not None
    assert worker.worker.room("standard") > AT_ONCE
    async with asyncio.timeout(5):
        while len(asked) < 4:
            await asyncio.sleep(0.01)
    assert max(asked) == AT_ONCE
    await stack.stop()
