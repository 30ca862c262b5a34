"""A worker that slept: nothing leaves it before it has proved that it is still a member."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.replies import Finished, Tokens
from tests.memory_stack import MemoryStack, scripted_answer, text_of

pytestmark = pytest.mark.timeout(60)

SESSION_SECONDS = 1.0


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[MemoryStack]:
    stack = await MemoryStack().start()
    yield stack
    await stack.stop()


async def test_a_worker_that_was_stopped_says_nothing_under_its_old_epoch(
    stack: MemoryStack,
) -> None:
    worker = await stack.worker("tokens_per_second=100", session_seconds=SESSION_SECONDS)
    await stack.open_api()
    request_id = await stack.ask("long", 300)
    while sum(isinstance(it, Tokens) for it in stack.events()) < 20:
        await asyncio.sleep(0.01)
    while worker._writer._under_way or worker._writer._buffers:
        await asyncio.sleep(0)
    said = len(stack.events())
    epoch = stack.events()[-1].epoch
    time.sleep(SESSION_SECONDS)  # noqa: ASYNC251  as SIGSTOP and SIGCONT: everything stands still
    answer = await stack.read(request_id)
    late = stack.events()[said:]
    assert [it for it in late if it.epoch == epoch] == []
    assert late, "it went on under another epoch"
    assert isinstance(answer[-1], Finished)
    assert text_of(answer) == scripted_answer("long", 300)


async def test_a_short_stall_changes_nothing(stack: MemoryStack) -> None:
    await stack.worker("tokens_per_second=100", session_seconds=SESSION_SECONDS)
    await stack.open_api()
    request_id = await stack.ask("long", 100)
    while sum(isinstance(it, Tokens) for it in stack.events()) < 20:
        await asyncio.sleep(0.01)
    owners = len(stack.fences())
    time.sleep(0.3 * SESSION_SECONDS)  # noqa: ASYNC251  as above
    assert text_of(await stack.read(request_id)) == scripted_answer("long", 100)
    assert len(stack.fences()) == owners
