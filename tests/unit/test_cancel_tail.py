"""What of `control` a worker acts on."""

import asyncio

from consumers.inference.cancels import CancelTail
from schemas.codec import encode
from schemas.operations import Control
from topics.catalogue import CONTROL, TopicSettings, catalogue
from topics.memory import MemoryLog


async def test_a_cancelled_and_a_deleted_request_stop_and_nothing_else_does() -> None:
    log = MemoryLog()
    await log.create(catalogue("default", TopicSettings()))
    stopped: list[tuple[str, str]] = []
    tail = CancelTail(log, lambda tenant, request_id: stopped.append((tenant, request_id)))
    reading = await tail.start()
    appender = await log.appender()
    for control in (
        Control(kind="cancel", tenant="a", request_id="1"),
        Control(kind="redeem", tenant="a", request_id="2", ticket="t", use="u"),
        Control(kind="delete", tenant="a", request_id="3"),
    ):
        await appender.append(CONTROL, 0, encode(control))
    async with asyncio.timeout(5):
        while len(stopped) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert stopped == [("a", "1"), ("a", "3")]
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await tail.close()
    await appender.close()
