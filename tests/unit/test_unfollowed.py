"""A request whose answer nobody waits for holds nothing of it here, and can be read all the same."""

import asyncio

from core.stream import Visible, is_terminal
from producer_api.submission import Draft
from schemas.replies import Tokens
from schemas.requests import CHAT, Body, Message
from tests.memory_stack import MemoryStack, scripted_answer


async def test_it_has_no_mailbox_and_its_answer_is_on_the_log() -> None:
    stack = await MemoryStack().start()
    try:
        await stack.worker()
        await stack.open_api()
        body = Body(messages=(Message(role="user", content="hello"),), max_tokens=3)
        draft = Draft(tenant="one", tier="standard", model="scripted", endpoint=CHAT, body=body)
        boxes, recordings = stack.api._router._boxes, stack.api._retrieval._cache._recordings
        followed = await stack.api.submit(draft)
        assert (len(boxes), len(recordings)) == (1, 1)
        await followed.stream.close()
        stream = (await stack.api.submit(draft, followed=False)).stream
        assert (len(boxes), len(recordings)) == (0, 0)
        found: list[Visible] = []
        async with asyncio.timeout(20):
            while not (found and is_terminal(found[-1])):
                found += await stream.next(1.0)
        await stream.close()
        said = "".join(it.text for it in found if isinstance(it, Tokens))
        assert said.strip() == scripted_answer("hello", 3).strip()
    finally:
        await stack.stop()
