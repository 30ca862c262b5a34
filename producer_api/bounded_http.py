"""HTTP as uvicorn speaks it, with bounds on what a connection may send before a handler is asked.

The gate sees a request only when its head is complete. Until then a line without an end, headers
without number, or one byte a minute would hold memory and a connection for as long as they like;
here they are refused while they arrive. Behind an answer that is under way nothing may be written:
there the connection ends behind that answer instead.

What a connection can hold: a head of `MARGIN_BYTES` more than `headers_bytes`, as much of what follows
a body in chunks or lies between them, a piece of `PIECE_BYTES`, `pipelined_requests` heads, and uvicorn's
64 KiB of a body that nobody has read yet.
"""

import asyncio
import logging
import sys
import uuid
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS, Limits
from producer_api.departure import EXTENSION as DEPARTURE
from producer_api.departure import Departure
from producer_api.direct import EXTENSION as PIECES
from producer_api.direct import Pieces
from producer_api.error_responses import error_response
from producer_api.joined_writes import JoinedWrites
from producer_api.last_body import LastBody, head_of_body
from producer_api.taking import Taking
from runtime.metrics import Metrics

PIECE_BYTES = 16 * 1024
"""What the parser is given at once. A head is counted by pieces, so it may be longer by one."""

MARGIN_BYTES = 8 * 1024
"""For the request line, and what separates headers: the gate counts names and values alone."""

LINGER_SECONDS = 1.0
"""How long a refused client may go on sending: closed at once, it would be reset before it has read
why."""

BODY_MARGIN_SECONDS = 2.0
"""Beyond the gate's own limit for a body, for the bodies that the gate does not wait for."""

_log = logging.getLogger(__name__)


class BoundedHttp(HttpToolsProtocol):
    """One connection. See `bounded_http`."""

    limits: ClassVar[Limits] = DEFAULT_LIMITS
    metrics: ClassVar[Metrics]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._message = 0  # which message of the connection is being read
        self._begun = False  # whether a byte of it has come
        self._in_head = True
        self._head_bytes = 0  # in a row that were no body
        self._body_in_piece = False
        self._ended_in_piece = False
        self._piece = b""
        self._upgrade = False
        self._surplus = False
        self._ignoring = False
        self._silent = True
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[int, str] | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited from now on."""
        super().connection_made(transport)
        self._taking = Taking(transport, self.limits.stalled_seconds, self.metrics)
        self._cycles: list[Any] = []  # of the requests taken that are not answered yet
        self._departure = Departure(self.flow.resume_reading)
        self._pieces = Pieces(transport)
        self._extensions = {PIECES: self._pieces, DEPARTURE: self._departure}
        self._await_rest("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more. uvicorn tells only the newest request that its client is gone."""
        self._await_rest(None)
        for cycle in self._cycles:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        self._taking.stop()
        super().connection_lost(exc)
        self._departure.happen()  # last: it calls others

    def data_received(self, data: bytes) -> None:
        """Feeds the parser piece by piece, for as long as the bounds hold."""
        if self._ignoring:
            return
        self._silent = False
        for start in range(0, len(data), PIECE_BYTES):
            piece = data if len(data) <= PIECE_BYTES else data[start : start + PIECE_BYTES]
            self._piece, self._ended_in_piece, self._body_in_piece = piece, False, False
            super().data_received(piece)
            if self._ignoring or self.transport.is_closing():
                return
            if self._surplus:
                self._end_behind_answers()
                return
            if self._head_too_large(len(piece)):
                self._refuse(
                    Refusal(
                        "headers_too_large",
                        f"At most {self.limits.headers_count} headers of "
                        f"{self.limits.headers_bytes} bytes together.",
                    )
                )
                return
        if not self._in_head:
            self._await_rest("body")
        else:
            # between two requests uvicorn's keep-alive limit holds, but it forgets that limit at
            # any byte, also at one that begins no request
            self._await_rest("head" if self._begun or not self._ended_in_piece else None)

    def _head_too_large(self, piece_bytes: int) -> bool:
        if self._body_in_piece or self._ended_in_piece:
            self._head_bytes = 0
            return False
        self._head_bytes += piece_bytes
        return self._head_bytes > self.limits.headers_bytes + MARGIN_BYTES or (
            self._begun and len(self.headers) > self.limits.headers_count
        )

    # --- a client that takes nothing

    def pause_writing(self) -> None:
        """Much waits to be sent: it must become less."""
        super().pause_writing()
        self._pieces.paused = True
        self._taking.watch()

    def resume_writing(self) -> None:
        """It was taken."""
        self._taking.stop()
        self._pieces.paused = False
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """The end of a connection waits for what is still to be sent, for as long as the client likes."""
        super().timeout_keep_alive_handler()
        self._taking.watch()

    # --- what the parser finds

    def on_message_begin(self) -> None:
        """A request begins; behind too many that wait for their turn it is not taken."""
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]  # one of our own
        self._message += 1
        self._begun = True
        self._surplus = self._surplus or len(self.pipeline) >= self.limits.pipelined_requests

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps one more than there may be: enough for whoever counts them.

        What follows a body in chunks is no part of the head: it could say what nobody has checked.
        """
        if self._in_head and len(self.headers) <= self.limits.headers_count:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: the gate counts what is in it."""
        self._in_head = False
        self._upgrade = self.parser.should_upgrade()
        if not self._surplus:
            super().on_headers_complete()
            self._cycles = [it for it in self._cycles if not it.response_complete]
            self._cycles.append(self.cycle)
            if self.scope["method"] != "HEAD":  # which has nothing behind its head
                writes: Any = JoinedWrites(self.transport, self.loop)
                self.cycle.transport = writes
            self.cycle.keep_alive = self.cycle.keep_alive and not self._upgrade

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._body_in_piece = True
        if not self._surplus:
            super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Reads on in HTTP/1.1, all there is here: clients that offer HTTP/2 send their body in it.

        The parser takes what follows such a head for another protocol, and the body, once it came in a
        piece of its own, for the next request.
        """
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        self._upgrade = False
        self.parser = httptools.HttpRequestParser(
            LastBody(self.on_body, self._last_message_complete)
        )
        try:
            self.parser.feed_data(head_of_body(self.headers))
            self.parser.feed_data(self._piece[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _last_message_complete(self) -> None:
        if not self._ignoring:
            self.on_message_complete()
            self._end_behind_answers()

    def on_message_complete(self) -> None:
        """A request is there; what comes next is a head."""
        if self._upgrade:
            return  # the parser stops here: the body is still to come
        self._in_head = True
        self._begun = False
        self._ended_in_piece = True
        if not self._surplus:
            super().on_message_complete()

    # --- the end of a connection that breaks a bound

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused as everything else is."""
        self._refuse(Refusal("invalid_request", msg))

    def _await_rest(self, part: str | None) -> None:
        """Gives the head, or the body, of the message that is being read its time, once."""
        timed = None if part is None else (self._message, part)
        if timed == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed, self._timer = timed, None
        if part is not None:
            margin_s = BODY_MARGIN_SECONDS if part == "body" else 0.0
            seconds = self.limits.receive_seconds + margin_s
            self._timer = self.loop.call_later(seconds, self._overdue, part)

    def _overdue(self, part: str) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            # it is we who do not read, until those before it are answered
            self._timed = None
            self._await_rest(part)
        elif part == "body":
            # the gate has answered, without the body or for the lack of it
            self._end_behind_answers()
        elif self._silent:
            self.transport.close()
        else:
            seconds = self.limits.receive_seconds
            text = f"The request was not received within {seconds} s."
            self._refuse(Refusal("request_timeout", text))

    def _is_answering(self) -> bool:
        """Whether the newest request taken, or one before it, is still being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _end_behind_answers(self) -> None:
        """Takes nothing more; what was taken is answered."""
        self._await_rest(None)
        self._ignoring = True
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        answer_id = str(uuid.uuid4())
        self.metrics.refused.labels(refusal.code).inc()
        _log.info("refused while it arrived: %s (request %s)", refusal.code, answer_id)
        if self._is_answering():
            self._end_behind_answers()
            return
        self._await_rest(None)
        self._unset_keepalive_if_required()
        self._ignoring = True
        headers = {"Connection": "close", "X-Request-Id": answer_id}
        response = error_response(refusal, headers)
        lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        status = STATUS_LINE[refusal.kind.status]
        self.transport.write(b"".join([status, *lines, b"\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()  # what still comes is thrown away
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def bounded_http(limits: Limits, metrics: Metrics) -> type[BoundedHttp]:
    """The protocol with these limits, as `uvicorn.Config(http=…)` takes it."""
    return type("BoundedHttp", (BoundedHttp,), {"limits": limits, "metrics": metrics})
