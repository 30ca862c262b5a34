"""A bound in time for what is mostly there at once."""

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from runtime.in_time import in_time


class Timers:
    """Counts those that this task sets: the loop is shared with what other tests left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        ours = asyncio.current_task()
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            self.count += asyncio.current_task() is ours
            return call_at(*args, **kwargs)

        monkeypatch.setattr(loop, "call_at", counted)


def within(seconds: float, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    return in_time(asyncio.get_running_loop().time() + seconds, coroutine)


async def never(ended: list[str]) -> None:
    """Waits until somebody ends it, and says that it was."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("yes")


async def test_what_is_there_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def known() -> int:
        return 7

    timers = Timers(monkeypatch)
    assert await within(1.0, known()) == 7
    assert timers.count == 0


async def test_what_waits_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def asked() -> list[int]:
        said = []
        for number in range(3):  # several waits: each answer goes where it belongs
            answer: asyncio.Future[int] = loop.create_future()
            loop.call_soon(answer.set_result, number)
            said.append(await answer)
            await asyncio.sleep(0)
        return said

    timers = Timers(monkeypatch)
    assert await within(1.0, asked()) == [0, 1, 2]
    assert timers.count == 1


async def test_what_waits_too_long_is_cancelled() -> None:
    ended: list[str] = []
    with pytest.raises(TimeoutError):
        await within(0.01, never(ended))
    assert ended == ["yes"]


async def test_a_time_that_is_past_ends_what_waits_and_not_what_is_there() -> None:
    async def known() -> int:
        return 7

    assert await within(-1.0, known()) == 7
    with pytest.raises(TimeoutError):
        await within(-1.0, asyncio.sleep(1.0))


async def test_errors_pass_at_once_and_later() -> None:
    async def at_once() -> None:
        raise ValueError("at once")

    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    for coroutine, text in ((at_once(), "at once"), (later(), "later")):
        with pytest.raises(ValueError, match=text):
            await within(1.0, coroutine)


async def test_a_failed_answer_is_thrown_where_it_is_waited_for() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def asked() -> str:
        try:
            await answer
        except ConnectionError:
            return "noticed"
        return "not noticed"

    asyncio.get_running_loop().call_soon(answer.set_exception, ConnectionError("gone"))
    assert await within(1.0, asked()) == "noticed"


async def test_a_cancel_reaches_what_waits_and_is_no_timeout() -> None:
    ended: list[str] = []
    task = asyncio.create_task(within(10.0, never(ended)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["yes"]


async def test_a_failed_answer_leaves_no_cycle_behind() -> None:
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[int]] = [loop.create_future()]
    seen = weakref.ref(answers[0])
    loop.call_soon(answers[0].set_exception, ConnectionError("gone"))

    async def asked() -> None:
        await answers.pop()

    gc.disable()
    try:
        with pytest.raises(ConnectionError):
            await within(1.0, asked())
        await asyncio.sleep(0)  # the loop holds it while it wakes us
        assert seen() is None
    finally:
        gc.enable()


async def test_limits_within_limits_end_by_the_nearer() -> None:
    async def inner() -> str:
        try:
            await within(0.01, never([]))
        except TimeoutError:
            return "inner"
        return "none"

    assert await within(5.0, inner()) == "inner"
    with pytest.raises(TimeoutError):
        await within(0.01, within(5.0, never([])))
