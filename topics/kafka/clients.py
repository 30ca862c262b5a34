"""aiokafka's clients from outside: started, bounded, and ended whatever state they are in.

Much here touches attributes that aiokafka keeps to itself (pinned below 0.15): its own `stop` waits
without a limit for a broker that is away, and a client left half-started, or ended while it
connects, leaks its sockets.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from aiokafka.errors import KafkaError

from topics.kafka.connecting import abort, bootstrap, connection_closed, paced
from topics.ports import LogError

STOP_SECONDS = 2.0
SETTLE_SECONDS = 6.0
RECORD_BYTES_MAX = 3 * 1024 * 1024

_TASKS = (
    *("sender_task", "_fetch_task", "_coordination_task", "_heartbeat_task"),
    *("_commit_refresh_task", "_reset_committed_task"),
)

T = TypeVar("T")

OnRebuild = Callable[[str, str], None]
"""Told of each client that is given up: which (`tail`, `member`, `appender`, `questions`), and why
(`died`, `stuck`, `in_doubt`, `no_answer`).
"""

_leftovers: set[asyncio.Task[Any]] = set()


async def started(client: Any, what: str, seconds: float) -> None:
    """Starts a client within the limit. Raises LogError, nothing of the client is left then."""
    net = net_of(client)
    net.bootstrap = partial(bootstrap, net)
    net._metadata_update = paced(net._metadata_update)  # noqa: SLF001
    net._on_connection_closed = partial(connection_closed, net._on_connection_closed)  # noqa: SLF001
    try:
        async with asyncio.timeout(seconds):
            await client.start()
    except asyncio.CancelledError:
        in_background(dismantled(client))
        raise
    except TimeoutError:
        await dismantled(client)
        raise LogError(f"{what}: no answer from the broker in {seconds:.0f} s") from None
    except BaseException as error:
        await dismantled(client)
        if isinstance(error, KafkaError | OSError):
            raise LogError(f"{what}: {describe(error)}") from error
        raise


async def ended(client: Any, seconds: float = STOP_SECONDS) -> None:
    """Ends a consumer or admin client: politely, and by force after the limit. Never raises."""
    stop = getattr(client, "stop", None) or client.close
    stopping = asyncio.ensure_future(stop())
    try:
        await asyncio.wait({stopping}, timeout=seconds)
    except asyncio.CancelledError:
        in_background(dismantled(client, stopping))
        raise
    # after a polite end, too: aiokafka's own leaves sockets that are being opened meanwhile
    await dismantled(client, stopping)


async def dismantled(client: Any, *tasks: "asyncio.Future[Any] | None") -> None:
    """Ends a client by force, with its background tasks and `tasks`. Bounded, never raises."""
    client._closed = True  # noqa: SLF001  else its finalizer complains
    ending = {task for task in tasks if task is not None}
    sender = getattr(client, "_sender", None)
    coordinator, fetcher = getattr(client, "_coordinator", None), getattr(client, "_fetcher", None)
    for owner in (sender, coordinator, fetcher):
        ending |= {task for name in _TASKS if (task := getattr(owner, name, None)) is not None}
    ending |= getattr(fetcher, "_pending_tasks", set())
    for task in ending:
        task.cancel()  # first of all: a sender that is left without a client would spin
    net = net_of(client)
    await cut_off(net)
    await cancelled(ending)
    await _close_sockets(net)  # a task that was connecting may have opened one more


def net_of(client: Any) -> Any:
    """The `AIOKafkaClient` of a producer, which is public there, a consumer or an admin client."""
    return client.client if hasattr(client, "client") else client._client  # noqa: SLF001


async def cancelled(tasks: Iterable["asyncio.Future[Any]"], seconds: float = 1.0) -> None:
    """Cancels and awaits, for a limited time; what the tasks had to say is dropped."""
    tasks = set(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def cut_off(net: Any) -> None:
    """Ends an `AIOKafkaClient`: it opens no socket any more; whoever waits for it is let go."""
    net._get_conn = _no_connection  # noqa: SLF001
    if net._sync_task is not None:  # noqa: SLF001
        await cancelled({net._sync_task})  # noqa: SLF001
        net._sync_task = None  # noqa: SLF001
    waiter = net._md_update_fut  # noqa: SLF001
    if waiter is None or waiter.done():
        # a done future left in place: nothing resolves a new one without the synchronizer
        waiter = net._md_update_fut = asyncio.get_running_loop().create_future()  # noqa: SLF001
    waiter.set_result(False)
    await _close_sockets(net)


async def _no_connection(*_: Any, **__: Any) -> None:
    """What a client that was ended finds when it looks for a connection."""


async def _close_sockets(net: Any, seconds: float = 0.5) -> None:
    conns = list(net._conns.values())  # noqa: SLF001
    net._conns.clear()  # noqa: SLF001
    closing = {future for conn in conns if (future := conn.close()) is not None}
    if closing:
        await asyncio.wait(closing, timeout=seconds)
    for conn in conns:
        abort(conn)


def in_background(work: Awaitable[T]) -> "asyncio.Task[T]":
    """Runs something to its end and keeps hold of it meanwhile."""

    async def run() -> T:
        return await work

    task = asyncio.get_running_loop().create_task(run())
    _leftovers.add(task)
    task.add_done_callback(_leftovers.discard)
    return task


async def settled(seconds: float = SETTLE_SECONDS) -> None:
    """Waits, for a limited time, for what still goes on in the background."""
    pending = {task for task in _leftovers if task is not asyncio.current_task()}
    if pending:
        await asyncio.wait(pending, timeout=seconds)


def describe(error: BaseException) -> str:
    """An error of aiokafka's in one line. Some name their kind themselves, ours need not be named."""
    name, text = type(error).__name__, str(error)
    if type(error) is ConnectionError or text.startswith(f"{name}:"):
        return text or name
    return f"{name}: {text}".strip(": ")
