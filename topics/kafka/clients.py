"""aiokafka's clients from outside: started, bounded, and ended whatever state they are in.

Much here touches attributes that aiokafka keeps to itself (pinned below 0.15): its own `stop` waits
without a limit for a broker that is away, and a client left half-started leaks its sockets.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from aiokafka.errors import KafkaError

from topics.ports import LogError

STOP_SECONDS = 3.0
RECORD_BYTES_MAX = 3 * 1024 * 1024

T = TypeVar("T")

_log = logging.getLogger(__name__)
_leftovers: set[asyncio.Task[Any]] = set()


async def started(client: Any, what: str, seconds: float) -> None:
    """Starts a client within the limit. Raises LogError, the client is ended then."""
    # Never cancelled while it connects: aiokafka would lose hold of the open socket.
    starting = asyncio.ensure_future(client.start())
    try:
        done, _ = await asyncio.wait({starting}, timeout=seconds)
    except asyncio.CancelledError:
        _keep(_end_after(starting, client))
        raise
    if not done:
        _keep(_end_after(starting, client))
        raise LogError(f"{what}: no answer from the broker in {seconds:.0f} s")
    error = starting.exception()
    if error is not None:
        await ended(client)
        if isinstance(error, KafkaError | OSError | TimeoutError):
            raise LogError(f"{what}: {describe(error)}") from error
        raise error


async def _end_after(starting: "asyncio.Future[None]", client: Any) -> None:
    # connecting is bounded by the client's own request timeout, waiting for a producer id is not
    await asyncio.wait({starting}, timeout=30.0)
    await cancelled({starting})
    await ended(client)


async def ended(client: Any, seconds: float = STOP_SECONDS) -> None:
    """Ends a consumer or admin client: politely, and by force after the limit. Never raises."""
    stop = getattr(client, "stop", None) or client.close
    stopping = asyncio.ensure_future(stop())
    try:
        await asyncio.wait({stopping}, timeout=seconds)
    except asyncio.CancelledError:
        _keep(_force(client, stopping))
        raise
    if not stopping.done() or stopping.cancelled() or stopping.exception() is not None:
        await _force(client, stopping)


async def _force(client: Any, stopping: "asyncio.Future[Any]") -> None:
    net = client._client  # noqa: SLF001
    coordinator, fetcher = getattr(client, "_coordinator", None), getattr(client, "_fetcher", None)
    names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_fetch_task")
    tasks = {stopping}
    for name in names:
        for owner in (coordinator, fetcher):
            if (task := getattr(owner, name, None)) is not None:
                tasks.add(task)
    tasks |= getattr(fetcher, "_pending_tasks", set())
    await cut_off(net)
    await cancelled(tasks)


async def cancelled(tasks: Iterable["asyncio.Future[Any]"], seconds: float = 2.0) -> None:
    """Cancels and awaits, for a limited time; what the tasks had to say is dropped."""
    tasks = set(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def cut_off(net: Any, seconds: float = 1.0) -> None:
    """Closes an `AIOKafkaClient`'s sockets; whoever waits for its metadata is let go."""
    waiter = net._md_update_fut  # noqa: SLF001
    closing = asyncio.ensure_future(net.close())
    await asyncio.wait({closing}, timeout=seconds)
    if waiter is None or waiter.done():
        # a done future left in place: nothing resolves a new one once the client is closed
        waiter = net._md_update_fut = asyncio.get_running_loop().create_future()  # noqa: SLF001
    waiter.set_result(False)
    if not closing.done():
        closing.cancel()
        await asyncio.wait({closing}, timeout=0.1)
    elif not closing.cancelled():
        closing.exception()


def _keep(work: Awaitable[Any]) -> None:
    """Lets something go on after its caller was cancelled or had no more time."""
    in_background(work)


def in_background(work: Awaitable[T]) -> "asyncio.Task[T]":
    """Runs something to its end and keeps hold of it meanwhile."""

    async def run() -> T:
        return await work

    task = asyncio.get_running_loop().create_task(run())
    _leftovers.add(task)
    task.add_done_callback(_leftovers.discard)
    return task


async def settled(seconds: float = STOP_SECONDS) -> None:
    """Waits, for a limited time, for what still goes on in the background."""
    pending = {task for task in _leftovers if task is not asyncio.current_task()}
    if pending:
        await asyncio.wait(pending, timeout=seconds)


def describe(error: BaseException) -> str:
    """An error of aiokafka's in one line."""
    return f"{type(error).__name__}: {error}".strip(": ")
