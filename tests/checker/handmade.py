"""Histories made by hand: the pieces, and a good one."""

from schemas.codec import encode
from schemas.fences import Acquired
from schemas.ids import make_request_id
from schemas.operations import DeadLetter, Usage
from schemas.replies import Accepted, AnyEvent, Events, Fence, Finished, Started, Tokens, TokenUsage
from schemas.requests import COMPLETIONS, Body, Request, Tier
from schemas.wire import Wire
from tests.checker.history import Action, Attempt, Commit, History, Seen, SeenTokens, Stored
from tests.checker.scripted_answer import expected_answer
from topics.ports import Record

NOW_MS = 1_767_225_600_000
TOPIC = "requests.default.standard"
Q = f"{TOPIC}/0"
BODY = Body(prompt="two words", max_tokens=2)
PREFIX = expected_answer(BODY).longest[:6]


def request(number: int, tier: Tier = "standard", at_ms: int = NOW_MS) -> Request:
    return Request(
        id=make_request_id(at_ms, 0, number),
        tenant="ann",
        tier=tier,
        model="scripted",
        endpoint=COMPLETIONS,
        body=BODY,
    )


REQUEST = request(1)
ID = REQUEST.id


class Log:
    """Writes a history; a millisecond goes by with each record, and `later` lets more go by."""

    def __init__(self) -> None:
        self.history = History()
        self.later_ms = 0
        self._ends: dict[str, int] = {}

    def put(self, topic: str, record: Wire | bytes) -> None:
        offset = self._ends.get(topic, 0)
        self._ends[topic] = offset + 1
        value = record if isinstance(record, bytes) else encode(record)
        serial = len(self.history.stored)
        time_ms = NOW_MS + self.later_ms + serial
        self.history.stored.append(
            Stored(serial, Record(topic, 0, offset, time_ms, None, value, ()))
        )

    def say(self, *events: AnyEvent) -> None:
        self.put("replies", Events(events=events))

    def acquire(self, incarnation: str, *more: str) -> None:
        """An A without its fence."""
        end = self._ends.get("replies", 0)
        self.put("fences", Acquired(qs=(Q, *more), incarnation=incarnation, ends=(end,)))

    def fence(self, epoch: int) -> None:
        self.put("replies", Fence(epoch=epoch, qs=(Q,)))

    def take(self, epoch: int, incarnation: str) -> None:
        """A new owner."""
        self.acquire(incarnation)
        self.fence(epoch)

    def park(self, reason: str, offset: int = 0) -> None:
        letter = DeadLetter(
            topic=TOPIC,
            partition=0,
            offset=offset,
            time_ms=NOW_MS,
            reason=reason,
            detail="",
            key=None,
            value=None,
        )
        self.put("dead-letters", letter)

    def commit(self, offset: int, metadata: str = "1:0") -> None:
        serial = len(self.history.stored)
        self.history.commits.append(Commit(serial, NOW_MS, "g", Q, offset, metadata))


def said(epoch: int, offset: int, request_id: str = ID) -> dict[str, object]:
    return {"id": request_id, "tenant": "ann", "q": Q, "offset": offset, "epoch": epoch}


def begun(epoch: int, count: int, *, offset: int = 0, worker: str | None = None) -> Started:
    return Started(
        **said(epoch, offset),  # type: ignore[arg-type]
        starts=1,
        counts=(count,),
        info=REQUEST.info(),
        worker=worker or f"w{epoch}",
    )


def token(epoch: int, seq: int, text: str | None = None, *, offset: int = 0) -> Tokens:
    return Tokens(
        **said(epoch, offset),  # type: ignore[arg-type]
        seq=seq,
        token_ids=(seq,),
        text=f"{PREFIX}.{seq} " if text is None else text,
        finish_reason="length" if seq == 1 else None,
    )


def finished(epoch: int, *, offset: int = 0) -> Finished:
    usage = TokenUsage(prompt_tokens=2, completion_tokens=2)
    return Finished(**said(epoch, offset), counts=(2,), usage=usage, finish_reasons=("length",))  # type: ignore[arg-type]


BILL = Usage(
    request_id=ID,
    tenant="ann",
    model="scripted",
    tier="standard",
    endpoint=COMPLETIONS,
    q=Q,
    offset=0,
    epoch=1,
    outcome="finished",
    prompt_tokens=2,
    cached_tokens=0,
    completion_tokens=2,
    queue_seconds=0,
    run_seconds=0,
    engine_seconds=0,
)


def seen_token(seq: int, text: str | None = None) -> SeenTokens:
    shown = f"{PREFIX}.{seq} " if text is None else text
    return SeenTokens(0, seq, (seq,), shown, "length" if seq == 1 else None)


def attempt(number: int, action: Action, seen: Seen) -> Attempt:
    return Attempt(
        number,
        "c",
        action,
        "ann",
        "api",
        NOW_MS,
        request_id=ID,
        result="ok",
        outcome="new",
        done_ms=NOW_MS + 1,
        seen=seen,
    )


def opened() -> Log:
    """A worker that owns a partition, and a request there."""
    log = Log()
    log.take(0, "a")
    log.put(TOPIC, REQUEST)
    log.put("replies", Accepted(id=ID, tenant="ann", info=REQUEST.info()))
    return log


def good() -> Log:
    """A request that two workers answered, one token each; its client came back in between."""
    log = opened()
    log.say(begun(0, 0), token(0, 0))
    log.take(1, "b")
    log.say(token(0, 1), finished(0))  # the first worker once more, behind the fence
    log.commit(0, "1:2")
    log.say(begun(1, 1), token(1, 1), finished(1))
    log.put("usage", BILL)
    log.commit(1, "1:6")
    rest = Seen(1, [seen_token(1)], "finished", (2,))
    log.history.attempts += [
        attempt(0, "submit", Seen(0, [seen_token(0)])),
        attempt(1, "resume", rest),
    ]
    return log
