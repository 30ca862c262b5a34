"""A connection for fetches alone: an answer is told in the turn of the loop in which it comes.

aiokafka's connection passes each answer through a task with two reads, and a future under a timer, to one
more task. So once it has connected and signed in, its transport is given to `FetchConnection`; it stays the
one that closes it, and what ends the one ends the other.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from aiokafka.conn import CloseReason
from aiokafka.errors import CorrelationIdError, KafkaConnectionError, RequestTimedOutError

from topics.kafka.fetch_protocol import (
    RESPONSE_BYTES_MAX,
    Fetched,
    FetchRequest,
    check_version,
    decode_answer,
)

ANSWER_BYTES_MAX = 2 * RESPONSE_BYTES_MAX
"""A broker goes beyond what was asked for by one batch at most; no length is believed that says more."""

Then = Callable[[list[Fetched] | Exception], None]
"""Told once, of the answer or of what was in its way."""

_LENGTH = struct.Struct(">i")
_HEAD = struct.Struct(">ii")  # length, correlation id
_EARLY_SECONDS = 0.001


class FetchConnection(asyncio.Protocol):
    """One question at a time. Raises IncompatibleBrokerVersion for a broker that does not speak it."""

    def __init__(self, conn: Any, request_seconds: float) -> None:
        check_version(conn._versions)  # noqa: SLF001
        self._conn = conn
        self._client_id: str = conn._client_id  # noqa: SLF001
        self._request_seconds = request_seconds
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._then: Then | None = None
        self._received = bytearray()
        self._until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._before: asyncio.Protocol = conn._protocol  # noqa: SLF001
        self._transport: Any = conn._writer.transport  # noqa: SLF001
        if conn._idle_handle is not None:  # noqa: SLF001
            conn._idle_handle.cancel()  # noqa: SLF001  it would not hear that we talk
        self._transport.set_protocol(self)

    @property
    def lost(self) -> bool:
        """Whether a new one is needed."""
        return bool(self._transport.is_closing())

    def fetch(self, request: FetchRequest, then: Then) -> None:
        """Asks; whatever comes of it is told later, never in this call."""
        assert self._then is None, "one question at a time"
        self._number = (self._number + 1) & 0x7FFFFFFF
        self._then = then
        self._until_s = self._loop.time() + self._request_seconds
        if self._timer is None:  # it outlives the answer: most come long before it
            self._timer = self._loop.call_at(self._until_s, self._ring)
        self._transport.write(request.encode(self._number, self._client_id))

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        received = self._received
        received += data
        if len(received) < _HEAD.size:
            return
        length, number = _HEAD.unpack_from(received)
        missing = _LENGTH.size + length - len(received)
        expected = self._then is not None and number == self._number
        if not expected or missing < 0 or length > ANSWER_BYTES_MAX:
            error = CorrelationIdError(f"an answer of {length} bytes to {number}: not asked for")
            self._give_up(CloseReason.OUT_OF_SYNC, error)
        elif missing == 0:
            answer = bytes(received)
            received.clear()
            try:
                found = decode_answer(answer, _HEAD.size)
            except (struct.error, UnicodeDecodeError) as error:
                refused = KafkaConnectionError(f"an answer that cannot be read: {error}")
                self._give_up(CloseReason.OUT_OF_SYNC, refused)
            else:
                self._tell(found)

    def _ring(self) -> None:
        self._timer = None
        if self._then is None:
            return
        if self._loop.time() < self._until_s - _EARLY_SECONDS:
            self._timer = self._loop.call_at(self._until_s, self._ring)
        else:
            text = f"no answer in {self._request_seconds:g} s"
            self._give_up(CloseReason.CONNECTION_TIMEOUT, RequestTimedOutError(text))

    def _give_up(self, reason: Any, error: Exception) -> None:
        self._received.clear()
        self._conn.close(reason=reason, exc=error)
        self._tell(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side, or aiokafka, has closed it: both hear of it."""
        if self._timer is not None:
            self._timer.cancel()
        self._received.clear()
        try:
            self._before.connection_lost(exc)
        finally:
            self._tell(KafkaConnectionError(f"connection closed: {exc or 'by the broker'}"))

    def _tell(self, answer: list[Fetched] | Exception) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(answer)
