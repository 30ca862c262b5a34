"""The topics of a run, decoded once for all rules."""

from dataclasses import dataclass, field

from schemas.codec import (
    UndecodableRecord,
    decode_claim,
    decode_control,
    decode_fence,
    decode_letter,
    decode_reply,
    decode_request,
    decode_usage,
)
from schemas.fences import Acquired, Fenced
from schemas.operations import Claim, DeadLetter, Usage
from schemas.requests import Request
from tests.checker.history import History, Stored, Trim
from tests.checker.plain_reader import Answer, At, Key, Origin, Replies, judge_claims
from topics.ports import Record


@dataclass(slots=True)
class TopicsRead:
    """What rules look at. Origins are (q, offset)."""

    replies: Replies = field(default_factory=Replies)
    requests: dict[Origin, tuple[Request | None, Stored]] = field(default_factory=dict)
    letters: dict[Origin, str] = field(default_factory=dict)
    usage: dict[Origin, list[Usage]] = field(default_factory=dict)
    cancels: dict[Key, At] = field(default_factory=dict)
    acquired: dict[int, tuple[Acquired, At]] = field(default_factory=dict)
    fenced_ms: dict[int, int] = field(default_factory=dict)
    claims: list[tuple[Claim, int, bool]] = field(default_factory=list)
    by_key: dict[Key, list[Origin]] = field(default_factory=dict)
    trims: list[Trim] = field(default_factory=list)

    def answer(self, key: Key) -> Answer:
        """An empty one if nothing was ever said."""
        return self.replies.answers.get(key) or Answer()

    def start_of(self, partition: int, time_ms: int) -> int:
        """Where this reply partition began at that time."""
        gone = (it for it in self.trims if it.partition == partition and it.time_ms <= time_ms)
        return max((it.start for it in gone), default=0)


def read_topics(history: History) -> TopicsRead:
    """Decodes every record. Only records on request topics may be unreadable."""
    read = TopicsRead(trims=history.trims)
    claims: list[tuple[int, Claim]] = []
    for stored in history.stored:
        record = stored.record
        at = At(stored.serial, record.offset, record.time_ms)
        if record.topic == "replies":
            read.replies.feed(record.partition, at, decode_reply(record.value), stored.sender)
        elif record.topic.startswith("requests."):
            _read_request(read, stored)
        elif record.topic == "claims":
            # a key has one partition, so append order over all is the order within each key
            claims.append((record.time_ms, decode_claim(record.value)))
        else:
            _read_beside(read, record, at)
    read.claims = judge_claims(claims)
    return read


def _read_request(read: TopicsRead, stored: Stored) -> None:
    record = stored.record
    origin = (f"{record.topic}/{record.partition}", record.offset)
    request: Request | None = None
    try:
        request = decode_request(record.value)
        read.by_key.setdefault((request.tenant, request.id), []).append(origin)
    except UndecodableRecord:
        request = None  # what a producer may well write: rules ask for its dead letter
    read.requests[origin] = (request, stored)


def _read_beside(read: TopicsRead, record: Record, at: At) -> None:
    if record.topic == "fences":
        fence = decode_fence(record.value)
        if isinstance(fence, Acquired):
            read.acquired[record.offset] = (fence, at)
        elif isinstance(fence, Fenced):
            read.fenced_ms.setdefault(fence.epoch, record.time_ms)
    elif record.topic == "usage":
        usage = decode_usage(record.value)
        read.usage.setdefault((usage.q, usage.offset), []).append(usage)
    elif record.topic == "dead-letters":
        letter = decode_letter(record.value)
        if isinstance(letter, DeadLetter):
            read.letters[f"{letter.topic}/{letter.partition}", letter.offset] = letter.reason
    elif record.topic == "control":
        control = decode_control(record.value)
        if control.kind == "cancel" and control.tenant and control.request_id:
            read.cancels.setdefault((control.tenant, control.request_id), at)
