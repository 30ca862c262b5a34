"""A readable account of a run: what processes logged, what was stored and committed, in order."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from schemas.codec import (
    UndecodableRecord,
    decode_claim,
    decode_control,
    decode_fence,
    decode_reply,
    decode_request,
)
from schemas.fences import Acquired
from schemas.replies import Accepted, Fence, Started, Terminal, Tokens
from tests.checker.history import History, Stored
from tests.simulation.loop import EPOCH_MS, PROCESS, START_S, SimLoop

LINES_MAX = 20_000


class Trace(logging.Handler):
    """Collects log lines with virtual times; `lines` merges them with the log's records."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(logging.INFO)
        self._loop = loop
        self._said: list[tuple[float, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One line, under the process that logged it."""
        name = PROCESS.get(self._loop.world).name
        at_s = self._loop.time() - START_S
        if len(self._said) < LINES_MAX:
            text = f"{name}: {record.getMessage()}"
            self._said.append((at_s, len(self._said), text))

    def say(self, text: str) -> None:
        """A line of the simulation's own."""
        self._said.append((self._loop.time() - START_S, len(self._said), text))

    def lines(self, history: History) -> list[str]:
        """Everything, in the order of time."""
        found = list(self._said)
        for stored in history.stored:
            at_s = (stored.record.time_ms - EPOCH_MS) / 1000
            found.append((at_s, 1_000_000 + stored.serial, stored_text(stored)))
        for number, commit in enumerate(history.commits):
            text = f"commit {commit.q} {commit.offset} ({commit.metadata})"
            found.append(((commit.time_ms - EPOCH_MS) / 1000, 2_000_000 + number, text))
        for it in history.attempts:
            end = it.done_ms or it.invoked_ms
            seen = ""
            if it.seen is not None:
                count = sum(len(t.token_ids) for t in it.seen.tokens)
                seen = f" saw {it.seen.after}+{count} {it.seen.terminal or ''}"
            text = (
                f"{it.client}: #{it.number} {it.action} of {short(it.request_id)} at {it.replica} "
                f"since {(it.invoked_ms - EPOCH_MS) / 1000:.3f}: {it.result} {it.code or ''}"
                f"{it.outcome or ''}{it.state or ''}{seen}"
            )
            found.append(((end - EPOCH_MS) / 1000, 3_000_000 + it.number, text))
        return [f"{at_s:9.3f}  {text}" for at_s, _, text in sorted(found)]


def short(request_id: str | None) -> str:
    """Enough of an id to tell it from others."""
    return f"…{request_id[-6:]}" if request_id else "-"


def stored_text(stored: Stored) -> str:
    """One record, in a line."""
    record = stored.record
    where = f"{record.topic}/{record.partition}@{record.offset}"
    return f"{where} by {stored.sender}: {_content(stored)}"


def _content(stored: Stored) -> str:
    record = stored.record
    kind = "requests" if record.topic.startswith("requests.") else record.topic
    show = _SHOWN.get(kind)
    if show is None:
        return f"{len(record.value or b'')} bytes"
    try:
        return show(record.value)
    except UndecodableRecord as error:
        return f"undecodable: {error}"


def _reply(value: bytes | None) -> str:
    reply = decode_reply(value)
    if isinstance(reply, Fence):
        return f"FENCE {reply.epoch} {' '.join(reply.qs)}"
    if isinstance(reply, Accepted):
        return f"accepted {short(reply.id)}"
    return "; ".join(_event(it) for it in reply.events)


def _fence(value: bytes | None) -> str:
    fence = decode_fence(value)
    if isinstance(fence, Acquired):
        return f"A {' '.join(fence.qs)} by {fence.incarnation[:6]} ends {fence.ends}"
    return f"{type(fence).__name__} {fence.epoch} ends {fence.ends}"


def _request(value: bytes | None) -> str:
    request = decode_request(value)
    body = request.body
    return (
        f"request {short(request.id)} of {request.tenant}: {body.max_tokens} tokens x "
        f"{body.n}, stop {list(body.stop)}"
    )


def _control(value: bytes | None) -> str:
    control = decode_control(value)
    return f"{control.kind} {short(control.request_id)}"


def _claim(value: bytes | None) -> str:
    claim = decode_claim(value)
    return f"claim {claim.key} for {short(claim.request_id)}, {claim.life_seconds} s"


_SHOWN: dict[str, Callable[[bytes | None], str]] = {
    "replies": _reply,
    "fences": _fence,
    "requests": _request,
    "control": _control,
    "claims": _claim,
}


def _event(event: object) -> str:
    if isinstance(event, Started):
        return f"{short(event.id)} start {event.counts} @{event.epoch} ({event.offset})"
    if isinstance(event, Tokens):
        end = f" {event.finish_reason}" if event.finish_reason else ""
        return f"{short(event.id)} {event.choice}:{event.seq}+{len(event.token_ids)}@{event.epoch}{end}"
    if isinstance(event, Terminal):
        return f"{short(event.id)} {type(event).__name__.upper()} {event.counts} @{event.epoch}"
    return type(event).__name__


@contextlib.contextmanager
def tracing(loop: SimLoop) -> Iterator[Trace]:
    """Everything that the product logs goes to the trace, and nowhere else."""
    trace = Trace(loop)
    root = logging.getLogger()
    before = root.level, root.handlers[:], logging.root.manager.disable
    root.handlers[:] = [trace]
    root.setLevel(logging.INFO)
    logging.disable(logging.NOTSET)
    try:
        yield trace
    finally:
        root.handlers[:] = before[1]
        root.setLevel(before[0])
        logging.disable(before[2])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The product logs every fault; of thousands of runs nobody wants to read that."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
