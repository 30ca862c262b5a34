"""A bound in time that costs nothing where nothing waits."""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def in_time(until_s: float, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """What the coroutine returns. Raises TimeoutError at `until_s` (the loop's time) instead.

    As within `asyncio.timeout_at`, which it enters only if the coroutine waits: what is asked for on the
    way of every request is nearly always there, and a timer costs more than to take it.
    """
    try:
        waits_for = [coroutine.send(None)]
    except StopIteration as done:
        result: _Result = done.value
    else:
        async with asyncio.timeout_at(until_s):
            result = await _go_on(coroutine, waits_for)
    return result


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waits_for: list[Any]) -> Generator[Any, Any, Any]:
    """A coroutine that was begun: what it waits for, and all that follows."""
    try:
        while True:
            try:
                # kept nowhere: a future that fails would lead back here by its traceback
                sent = yield waits_for.pop()
            except BaseException as error:  # noqa: BLE001  a cancel above all: it is the coroutine's
                waits_for.append(coroutine.throw(error))
            else:
                waits_for.append(coroutine.send(sent))
    except StopIteration as done:
        return done.value
