"""A mailbox's wait: woken by what comes, bounded by time, whatever its timer was set for."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from producer_api.mailbox import Mailbox
from schemas.replies import TokenLogprob
from tests.fake_pipeline import tokens


def mailbox() -> Mailbox:
    return Mailbox(("a", "id"), 1024, 1 << 20)


async def test_a_wait_ends_when_something_came() -> None:
    box = mailbox()
    waiting = asyncio.create_task(box.wait(30.0))
    await asyncio.sleep(0)
    box.put(tokens(1))
    box.wake()
    await asyncio.wait_for(waiting, 5.0)
    assert len(box.take()) == 1
    box.close()


async def test_a_wait_ends_after_its_time_also_behind_the_timer_of_an_earlier_one() -> None:
    box = mailbox()
    first = asyncio.create_task(box.wait(0.15))
    await asyncio.sleep(0)
    box.wake()
    await first
    began_s = time.monotonic()
    await asyncio.wait_for(box.wait(0.3), 5.0)  # the first one's timer rings in between
    assert time.monotonic() - began_s > 0.29
    box.close()


async def test_a_shorter_wait_does_not_have_to_wait_for_the_timer_of_a_longer_one() -> None:
    box = mailbox()
    first = asyncio.create_task(box.wait(60.0))
    await asyncio.sleep(0)
    box.wake()
    await first
    await asyncio.wait_for(box.wait(0.05), 5.0)
    box.close()


async def test_a_closed_box_leaves_no_timer_and_may_be_closed_again() -> None:
    box = mailbox()
    waiting = asyncio.create_task(box.wait(60.0))
    await asyncio.sleep(0)
    box.wake()
    await waiting
    timer = box._timer
    box.close()
    box.close()
    assert timer is not None
    assert timer.cancelled()


async def test_log_probabilities_count_against_the_bound_in_bytes() -> None:
    top = tuple((f"other.{i} ", -float(i)) for i in range(20))
    heavy: Any = msgspec.structs.replace(
        tokens(1, text="a"), logprobs=(TokenLogprob(token="a", logprob=-0.1, top=top),)
    )
    light, loaded = Mailbox(("a", "id"), 1024, 64 * 1024), Mailbox(("a", "id"), 1024, 64 * 1024)
    assert all(light.put(tokens(1, text="a")) for _ in range(100))
    assert not all(loaded.put(heavy) for _ in range(100))
    assert loaded.take() == []


async def test_who_was_let_go_and_has_not_gone_yet_takes_no_wake_up_from_the_next() -> None:
    box = mailbox()
    first = asyncio.create_task(box.wait(60.0))
    await asyncio.sleep(0)
    box.wake()
    second = box.wait(60.0)
    future: Any = second.send(None)  # it waits now, before the first has gone
    await first
    box.wake()
    assert future.done()
    with pytest.raises(StopIteration):
        second.send(None)
    box.close()
