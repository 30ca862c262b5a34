"""A worker that leaves its group takes nothing over any more."""

import asyncio
from typing import Any

import pytest

from tests.memory_stack import MemoryStack


def owning_tasks(tier: str) -> list[str]:
    return [name for it in asyncio.all_tasks() if (name := it.get_name()) == f"own-{tier}"]


async def test_a_rebalance_beside_the_last_commit_begins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = await MemoryStack().start()
    worker = await stack.worker()
    assert all(owning_tasks(it.tier) for it in worker._tiers)
    rebalanced, begun = [], []
    for tier in worker._tiers:

        async def commit(qs: Any, tier: Any = tier) -> None:
            del qs
            held = tier.assigned
            await tier._on_revoked(held)
            await tier._on_assigned(held)
            begun.extend(owning_tasks(tier.tier))
            rebalanced.append(tier.tier)

        monkeypatch.setattr(tier.commits, "commit", commit)
    await stack.stop()
    assert len(rebalanced) == len(worker._tiers)
    assert begun == []
