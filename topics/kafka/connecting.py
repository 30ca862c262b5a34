"""How aiokafka's clients connect and learn, changed in three places.

It asks without pause for a topic that was deleted under it, and logs each answer. Its own `bootstrap`
loses hold of its socket when it is cancelled, hence could only be waited for; and a connection that is
given up stays open for as long as what was written waits for a frozen peer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.conn import CloseReason, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

_BROKEN = (CloseReason.CONNECTION_BROKEN, CloseReason.CONNECTION_TIMEOUT)
RETRY_SECONDS = 0.1
MISSING_SECONDS_MAX = 0.5


async def bootstrap(net: Any) -> None:
    """Learns the cluster from the first address that answers; KafkaConnectionError if none does.

    Whoever calls bounds it in time, by cancelling it.
    """
    while not await _learn_from_any(net):
        await asyncio.sleep(RETRY_SECONDS)  # a broker that has just started knows of none
    if net._sync_task is None:  # noqa: SLF001
        net._sync_task = net._loop.create_task(net._md_synchronizer())  # noqa: SLF001


async def _learn_from_any(net: Any) -> bool:
    reasons = []
    for host, port, _ in net.hosts:
        try:
            return await _learn(net, host, port)
        except (OSError, KafkaError, TimeoutError) as error:
            reasons.append(f"{host}:{port}: {error or type(error).__name__}")
    raise KafkaConnectionError("; ".join(reasons))


async def _learn(net: Any, host: str, port: int) -> bool:
    conn = await create_conn(
        host,
        port,
        client_id=net._client_id,  # noqa: SLF001
        request_timeout_ms=net._request_timeout_ms,  # noqa: SLF001
        ssl_context=net._ssl_context,  # noqa: SLF001
        security_protocol=net._security_protocol,  # noqa: SLF001
        sasl_mechanism=net._sasl_mechanism,  # noqa: SLF001
        sasl_plain_username=net._sasl_plain_username,  # noqa: SLF001
        sasl_plain_password=net._sasl_plain_password,  # noqa: SLF001
    )
    try:
        net.cluster.update_metadata(await conn.send(MetadataRequest([])))
    finally:
        conn.close()
        abort(conn)
    return bool(net.cluster.brokers())


def paced(update: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Aiokafka's `_metadata_update`, with growing pauses while the same topics stay unknown."""
    missing: set[str] = set()
    repeats = 0

    async def update_paced(cluster: Any, topics: Any) -> Any:
        nonlocal missing, repeats
        before, missing = missing, set(topics or ()) - cluster.topics()
        repeats = min(repeats + 1, 10) if missing and missing == before else 0
        if repeats:
            await asyncio.sleep(min(MISSING_SECONDS_MAX, 0.005 * 2**repeats))
        return await update(cluster, topics)

    return update_paced


def connection_closed(then: Callable[[Any, Any], None], conn: Any, reason: Any) -> None:
    """Aiokafka's `on_close`: what was not sent on a broken connection is not sent any more."""
    if reason in _BROKEN:
        abort(conn)
    then(conn, reason)


def abort(conn: Any) -> None:
    """Closes the socket now, whatever is still to be written."""
    protocol = conn._protocol  # noqa: SLF001
    transport = protocol._transport if protocol is not None else None  # noqa: SLF001
    if transport is not None:
        transport.abort()
