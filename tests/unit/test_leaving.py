"""A worker that leaves its group takes nothing over any more."""

import asyncio
from typing import Any

import pytest

from tests.memory_stack import MemoryStack


def owning_tasks() -> list[str]:
    return [it.get_name() for it in asyncio.all_tasks() if it.get_name().startswith("own-")]


async def test_a_rebalance_beside_the_last_commit_begins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = await MemoryStack().start()
    worker = await stack.worker()
    assert owning_tasks()
    rebalanced, begun = [], []
    for tier in worker._tiers:

        async def commit(qs: Any, tier: Any = tier) -> None:
            del qs
            held = tier.assigned
            await tier._on_revoked(held)
            await tier._on_assigned(held)
            begun.extend(owning_tasks())
            rebalanced.append(tier.tier)

        monkeypatch.setattr(tier._commits, "commit", commit)
    await stack.stop()
    assert len(rebalanced) == len(worker._tiers)
    assert begun == []
