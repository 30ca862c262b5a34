"""A replica that goes away: who waits for an answer is told so then, not when his wait is over."""

import asyncio

import pytest

from producer_api.streams import ShuttingDown
from producer_api.submission import Draft
from schemas.replies import Started
from schemas.requests import CHAT, Body, Message
from tests.memory_stack import MemoryStack


async def test_every_open_stream_is_told_at_once() -> None:
    stack = await MemoryStack().start()
    try:
        await stack.worker("ttft_ms=60000")
        await stack.open_api()
        body = Body(messages=(Message(role="user", content="hello"),), max_tokens=3)
        draft = Draft(tenant="one", tier="standard", model="scripted", endpoint=CHAT, body=body)
        streams = [(await stack.api.submit(draft)).stream for _ in range(3)]
        for stream in streams:
            while not any(isinstance(it, Started) for it in await stream.next(5.0)):
                pass
        waiting = [asyncio.create_task(stream.next(60.0)) for stream in streams]
        await asyncio.sleep(0.05)
        await stack.api.drain()
        async with asyncio.timeout(0.5):
            for task in waiting:
                with pytest.raises(ShuttingDown):
                    await task
        for stream in streams:
            await stream.close()
    finally:
        await stack.stop()
