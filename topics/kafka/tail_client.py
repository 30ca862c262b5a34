"""A tail's client: where its topics lie, and a connection for fetches at each leader."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import NodeNotReadyError

from topics.kafka.clients import cancelled
from topics.kafka.fetch_connection import FetchConnection, Then
from topics.kafka.fetch_protocol import FetchRequest

_METADATA, _FETCHES = ConnectionGroup.DEFAULT, ConnectionGroup.COORDINATION
"""aiokafka keeps connections apart by these, so a question for leaders waits behind no fetch."""


class TailClient:
    """Started by `clients.started`, ended by `clients.ended`."""

    def __init__(self, topics: Iterable[str], *, request_timeout_ms: int, **arguments: Any) -> None:
        self.client = AIOKafkaClient(request_timeout_ms=request_timeout_ms, **arguments)
        self._topics = set(topics)
        self._request_seconds = request_timeout_ms / 1000
        self._connections: dict[int, FetchConnection] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        await self.client.bootstrap()
        await self.client.set_topics(self._topics)

    def fetch(self, node: int, request: FetchRequest, then: Then) -> None:
        """Asks a broker, of which nothing else is asked meanwhile; `then` is told, never in this call."""
        connection = self._connections.get(node)
        if connection is not None and not connection.lost:
            connection.fetch(request, then)
        else:
            connect = self._connect(node, request, then)
            self._connecting[node] = asyncio.get_running_loop().create_task(connect)

    async def _connect(self, node: int, request: FetchRequest, then: Then) -> None:
        try:
            connection = await self._connected(node)
        except Exception as error:  # noqa: BLE001  told to whoever asked
            then(error)
        else:
            connection.fetch(request, then)

    async def _connected(self, node: int) -> FetchConnection:
        self._take_over_idle(node)
        conn = await self.client._get_conn(node, group=_FETCHES)  # noqa: SLF001
        if conn is None:
            raise NodeNotReadyError(f"no connection to broker {node}")
        if not conn.connected() or conn._writer.transport.is_closing():  # noqa: SLF001
            # whoever is given its transport now is never told that it is lost
            conn.close(reason=CloseReason.CONNECTION_BROKEN)
            raise NodeNotReadyError(f"the connection to broker {node} was lost at once")
        connection = self._connections[node] = FetchConnection(conn, self._request_seconds)
        return connection

    def _take_over_idle(self, node: int) -> None:
        """Makes the connection that told where topics lie one for fetches: scans ask that but once."""
        conns = self.client._conns  # noqa: SLF001
        conn = conns.get((node, _METADATA))
        if (node, _FETCHES) not in conns and conn is not None and not conn._requests:  # noqa: SLF001
            conns[node, _FETCHES] = conns.pop((node, _METADATA))

    async def stop(self) -> None:
        await cancelled(self._connecting.values())
        await self.client.close()


OpenClient = Callable[[Iterable[str]], Awaitable[TailClient]]
