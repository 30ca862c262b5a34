"""An API replica in the simulation: the real `Pipeline`, and in place of HTTP a modelled connection.

`serve` does what the routes do with a pipeline: submit, stream, resume, status, cancel, and what
follows when the client hangs up. Chunks reach the client in order, after a while, or never.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from core.errors import Refusal
from core.limits import Limits
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.streams import ClientGone, ReplyStream, ShuttingDown
from producer_api.submission import Draft, IdempotencyKey
from runtime.metrics import Metrics
from schemas.replies import Tokens
from tests.simulation.loop import Process, SimLoop
from tests.simulation.showing import Chunk, End, Showing
from topics.ports import Log, LogError


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asks for. `follow`: keep the connection and stream the answer."""

    action: Literal["submit", "resume", "status", "cancel"]
    tenant: str
    draft: Draft | None = None
    idempotency: IdempotencyKey | None = None
    plain: bool = True
    follow: bool = True
    whole: bool = False
    request_id: str = ""
    after: int = 0


@dataclass(frozen=True, slots=True)
class Head:
    """The status line of an answer that is no refusal."""

    request_id: str
    outcome: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A documented failure."""

    code: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke."""


Item = Head | Chunk | End | Refused | Lost


class Connection:
    """Both ends of one TCP connection between a client and a replica."""

    def __init__(
        self, loop: SimLoop, chance: random.Random, client: Process, replica: Process
    ) -> None:
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        self._loop = loop
        self._random = chance
        self._client = client
        self._replica = replica
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_s = 0.0
        self._closed = False

    # --- the replica's end

    def send(self, item: Item) -> None:
        """Arrives after what was sent before."""
        delay_s = 0.0003 + 0.004 * self._random.random()
        self._last_s = max(self._last_s, self._loop.time() + delay_s)
        self._loop.call_for(self._client, self._last_s - self._loop.time(), self._arrive, item)

    def _hang_up(self) -> None:
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    # --- the client's end

    def _arrive(self, item: Item) -> None:
        if not self._closed:
            self._items.append(item)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def next(self, patience_s: float) -> Item:
        """The next item; `Lost` when patience ends."""
        if not self._items:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(patience_s, self._arrive, Lost())
            await self._waiter
            timer.cancel()
        return self._items.popleft()

    def close(self) -> None:
        """The client hangs up."""
        if not self._closed:
            self._closed = True
            self._loop.call_for(self._replica, 0.003 * self._random.random(), self._hang_up)

    def cut(self) -> None:
        """The replica's process is gone: what was sent arrives, then the end."""
        self.send(Lost())


class Replica:
    """One process of the API: `start`, then `connect` from clients, until it is killed."""

    def __init__(
        self,
        loop: SimLoop,
        name: str,
        chance: random.Random,
        on_surprise: Callable[[str], None],
    ) -> None:
        self.name = name
        self.process = loop.process(name)
        self.pipeline: Pipeline | None = None
        self.ready = False
        self._loop = loop
        self._random = chance
        self._on_surprise = on_surprise
        self._connections: dict[int, Connection] = {}

    async def live(
        self, log: Log, limits: Limits, metrics: Metrics, index: int, count: int
    ) -> BaseException:
        """Runs until something in it ends; returns what."""
        pipeline = self.pipeline = Pipeline(
            log, limits, metrics, replica_index=index, replica_count=count
        )
        try:
            await pipeline.start()
        except (LogError, TimeoutError) as error:
            return error
        self.ready = True
        try:
            await pipeline.failed
        except Exception as error:  # noqa: BLE001  whatever ended it: the process goes down with it
            return error
        finally:
            self.ready = False
        raise AssertionError("a pipeline fails with an error")

    async def retire(self) -> None:
        """A rolling restart: drains, ends its streams, stops."""
        assert self.pipeline is not None
        self.ready = False
        await self.pipeline.drain()
        await asyncio.sleep(0.2)
        await self.pipeline.stop()
        self.dies()

    def dies(self) -> None:
        """SIGKILL: every connection breaks."""
        self.ready = False
        self._loop.kill(self.process)
        for connection in self._connections.values():
            connection.cut()
        self._connections.clear()

    def connect(self, client: Process, call: Call) -> Connection:
        """A client's request; what comes of it is read from the connection."""
        connection = Connection(self._loop, self._random, client, self.process)
        if self.process.killed or self.pipeline is None:
            connection.cut()
            return connection
        serial = self._loop.next_serial()
        self._connections[serial] = connection
        delay_s = 0.0003 + 0.004 * self._random.random()
        self._loop.call_for(self.process, delay_s, self._begin, call, connection, serial)
        return connection

    def _begin(self, call: Call, connection: Connection, serial: int) -> None:
        if not self.ready:
            connection.send(Refused("shutting_down"))
            return

        async def handle() -> None:
            try:
                await self._serve(call, connection)
            except Refusal as refusal:
                connection.send(Refused(refusal.code))
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001  the checker is told of it: I12
                self._on_surprise(f"{self.name}: {call.action} raised {error!r}")
                connection.send(Refused("internal_error"))
            finally:
                self._connections.pop(serial, None)

        self._loop.create_task(handle(), name=f"{call.action} on {self.name}")

    # --- what the routes do

    async def _serve(self, call: Call, connection: Connection) -> None:
        pipeline = self.pipeline
        assert pipeline is not None
        if call.action == "submit":
            await self._submit(pipeline, call, connection)
        elif call.action == "resume":
            snapshot, stream = await pipeline.resume(call.tenant, call.request_id)
            read = sum(len(it.token_ids) for it in snapshot.visible if isinstance(it, Tokens))
            if call.after > read:
                await stream.close()
                raise Refusal("stream_cursor_expired", "beyond what there is of this answer")
            connection.send(Head(call.request_id, "resumed"))
            showing = Showing(call.request_id, snapshot.info, call.after)
            await self._stream(stream, showing, connection, None)
        elif call.action == "status":
            snapshot = await pipeline.status(call.tenant, call.request_id)
            connection.send(Head(call.request_id, "status", snapshot.state))
            showing = Showing(call.request_id, snapshot.info)
            self._send(connection, showing, snapshot.visible)
        else:
            await self._cancel(pipeline, call, connection)

    async def _submit(self, pipeline: Pipeline, call: Call, connection: Connection) -> None:
        assert call.draft is not None
        pipeline.check_model(call.draft.model)
        submission = await pipeline.submit(call.draft, idempotency=call.idempotency)
        head = Head(submission.request_id, submission.outcome)
        if not call.follow:
            await submission.stream.close()
            connection.send(head)
            return

        def on_gone() -> None:
            if call.plain:
                pipeline.cancel_soon(call.tenant, submission.request_id)

        if not call.whole:
            connection.send(head)
            head = None  # type: ignore[assignment]
        showing = Showing(submission.request_id, call.draft.request("", "").info())
        await self._stream(submission.stream, showing, connection, on_gone, head)

    async def _stream(
        self,
        stream: ReplyStream,
        showing: Showing,
        connection: Connection,
        on_gone: Callable[[], None] | None,
        head: Head | None = None,
    ) -> None:
        """As `Answering` does it: a whole body at the end, or chunks as they come."""
        connection.on_gone = stream.abandon
        if connection.gone:
            stream.abandon()
        gathered: list[Visible] = []
        try:
            while True:
                events = await stream.next(30.0)
                gathered += events
                if head is None:
                    self._send(connection, showing, events)
                if events and is_terminal(events[-1]):
                    break
            if head is not None:
                connection.send(head)
                self._send(connection, showing, gathered)
        except ClientGone:
            if on_gone is not None:
                on_gone()
        except ShuttingDown:
            connection.send(Refused("shutting_down"))
        except LogError:
            connection.send(Refused("unavailable"))
        finally:
            await stream.close()

    async def _cancel(self, pipeline: Pipeline, call: Call, connection: Connection) -> None:
        snapshot = await pipeline.status(call.tenant, call.request_id)
        if not is_terminal(snapshot.visible[-1]):
            await pipeline.cancel(call.tenant, call.request_id, "client")
            stream = await pipeline.open(call.tenant, call.request_id)
            try:
                for _ in range(10):
                    events = await stream.next(0.5)
                    if events and is_terminal(events[-1]):
                        break
            except (ShuttingDown, LogError):
                pass
            finally:
                await stream.close()
            snapshot = await pipeline.status(call.tenant, call.request_id)
        connection.send(Head(call.request_id, "cancel", snapshot.state))

    @staticmethod
    def _send(connection: Connection, showing: Showing, events: list[Visible]) -> None:
        for item in showing.items(events):
            connection.send(item)
