"""A takeover beside a backlog: what somebody is reading goes on before what nobody has seen begun."""

import asyncio

import pytest

from schemas.replies import AnyEvent, Tokens
from tests.memory_stack import MemoryStack
from topics.catalogue import TopicSettings

SPEAKING = 6
BACKLOG = 60
PACE = ("tokens_per_second=20", f"slots={SPEAKING}")


def speaking(events: list[AnyEvent]) -> set[str]:
    return {it.id for it in events if isinstance(it, Tokens)}


@pytest.mark.timeout(30)
async def test_the_speaking_go_on_before_the_backlog_of_any_partition() -> None:
    stack = await MemoryStack().start(TopicSettings(request_partitions=3))
    await stack.open_api()
    try:
        first = await stack.worker(*PACE, name="first")
        begun = [await stack.ask(f"speaking {i}", 1000) for i in range(SPEAKING)]
        async with asyncio.timeout(10):
            while len(speaking(stack.events())) < SPEAKING:
                await asyncio.sleep(0.02)
        for number in range(BACKLOG):
            await stack.ask(f"waiting {number}", 1000)
        await first.stop(drain=False)
        said = len(stack.events())
        await stack.worker(*PACE, name="second")
        async with asyncio.timeout(5):
            while len(speaking(stack.events()[said:])) < SPEAKING:
                await asyncio.sleep(0.02)
        assert speaking(stack.events()[said:]) == set(begun)
    finally:
        await stack.stop()
