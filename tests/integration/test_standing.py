"""A living owner repeats itself on `fences`; what retention took is not missed."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from core.limits import DEFAULT_LIMITS
from schemas.codec import decode_fence
from schemas.fences import Acquired, Fenced, Still
from tests.memory_stack import MemoryStack, scripted_answer, text_of
from topics.fence_tail import FENCES, FenceTail
from topics.memory import MemoryLog

LIMITS = DEFAULT_LIMITS.__class__(reply_retention_seconds=2.0, total_seconds=1.0)


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[MemoryStack]:
    stack = await MemoryStack(limits=LIMITS).start()
    yield stack
    await stack.stop()


def trim_to_repeats(log: MemoryLog) -> None:
    """Takes every A and B; what is left begins with the last repeat of the first epoch."""
    records = log.records(FENCES)
    kinds = [decode_fence(it.value) for it in records]
    last_said = max(i for i, it in enumerate(kinds) if isinstance(it, Acquired | Fenced))
    log.trim(FENCES, records[last_said].offset + 1)
    assert all(isinstance(decode_fence(it.value), Still) for it in log.records(FENCES))


async def test_a_repeat_stands_in_for_what_retention_took(stack: MemoryStack) -> None:
    worker = await stack.worker("tokens_per_second=100")
    await stack.open_api()
    owned = {q: it.epoch for tier in worker._tiers for q, it in tier.owned.items()}
    assert len(owned) == 16
    async with asyncio.timeout(10):
        while sum(isinstance(it, Still) for it in stack.fences()) < len(set(owned.values())):
            await asyncio.sleep(0.05)
    assert isinstance(stack.log, MemoryLog)
    before = worker._fence_tail.fences.late_start(0, 1000)
    trim_to_repeats(stack.log)
    late = await FenceTail.open(stack.log)
    assert {q: late.fences.highest(str(q)) for q in owned} == owned
    assert late.fences.late_start(0, 1000) == before
    await late.close()


async def test_an_owner_whose_records_are_gone_keeps_its_epoch_at_a_rebalance(
    stack: MemoryStack,
) -> None:
    worker = await stack.worker("tokens_per_second=100")
    await stack.open_api()
    epochs = {q: it.epoch for tier in worker._tiers for q, it in tier.owned.items()}
    async with asyncio.timeout(10):
        while sum(isinstance(it, Still) for it in stack.fences()) < len(set(epochs.values())):
            await asyncio.sleep(0.05)
    assert isinstance(stack.log, MemoryLog)
    trim_to_repeats(stack.log)
    request_id = await stack.ask("goes on", 60)
    for tier in worker._tiers:
        stack.log._groups[tier.group].changed()
    assert text_of(await stack.read(request_id)) == scripted_answer("goes on", 60)
    assert worker.owns_all()
    assert {q: it.epoch for tier in worker._tiers for q, it in tier.owned.items()} == epochs
    assert not [it for it in stack.fences() if isinstance(it, Acquired)]


async def test_what_was_lost_to_another_owner_is_not_repeated(stack: MemoryStack) -> None:
    one = await stack.worker(name="one")
    await stack.worker(name="two")
    async with asyncio.timeout(10):
        while not (one.owns_all() and all(len(tier.owned) == 2 for tier in one._tiers)):
            await asyncio.sleep(0.02)
    seen = len(stack.fences())
    epochs = {
        str(q): it.epoch for w in stack.workers for t in w._tiers for q, it in t.owned.items()
    }
    await asyncio.sleep(1.5 * LIMITS.reply_retention_seconds)
    said = [it for it in stack.fences()[seen:] if isinstance(it, Still)]
    assert {q for it in said for q in it.qs} == set(epochs)
    assert {(q, it.epoch) for it in said for q in it.qs} == set(epochs.items())
