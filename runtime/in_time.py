"""A bound in time that costs nothing where nothing waits."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def in_time(until_s: float, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """What the coroutine returns. Raises TimeoutError at `until_s` (the loop's time) instead.

    As within `asyncio.timeout_at`, which it enters only if the coroutine waits: what is asked for on the
    way of every request is nearly always there, and a timer costs more than to take it.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration as done:
        result: _Result = done.value
    else:
        async with asyncio.timeout_at(until_s):
            result = await _Rest(coroutine, waits_for)
    return result


class _Rest:
    """A coroutine that was begun: what it waits for, and all that follows."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as error:  # noqa: BLE001  a cancel above all: it is the coroutine's
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(sent)
        except StopIteration as done:
            return done.value
