"""Everything the log says of one request, in order of time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from inferlog.log_reading import read_span
from schemas.codec import (
    UndecodableRecord,
    decode_claim,
    decode_control,
    decode_fence,
    decode_letter,
    decode_reply,
    decode_usage,
)
from schemas.envelope import REQUEST_ID, header_text
from schemas.fences import Acquired, Fenced, Still
from schemas.ids import parse_request_id
from schemas.operations import LetterMark
from schemas.replies import (
    Accepted,
    AnyEvent,
    Expired,
    Failed,
    Fence,
    Finished,
    Started,
    Tokens,
)
from schemas.requests import TIERS
from topics.catalogue import (
    CLAIMS,
    CONTROL,
    DEAD_LETTERS,
    FENCES,
    REPLIES,
    USAGE,
    request_topic,
)
from topics.ports import Log, Partition, Record

SKEW_MS = 30_000
RECORDS_MAX = 200_000
"""Read at most so many records of a partition: a look must end on a busy cluster, too."""

EPOCH = " (epoch "
INVISIBLE = "INVISIBLE: of an ended epoch"
SAME_RANK = {"claim": 0, "request": 1, "accepted": 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; `where` is topic/partition@offset, `time_ms` its append time."""

    time_ms: int
    what: str
    where: str
    how: str


async def collect(log: Log, pool: str, request_id: str) -> list[Entry]:
    """The entries in order. Raises LogError."""
    parts = parse_request_id(request_id)
    since_ms = max(0, parts.time_ms - SKEW_MS)
    timeline = Timeline(request_id)
    await _scan(log, REPLIES, since_ms, timeline.reply, only=parts.reply_partition)
    await _scan(log, CLAIMS, since_ms, timeline.claim)
    await _scan(log, CONTROL, since_ms, timeline.control)
    await _scan(log, USAGE, since_ms, timeline.usage)
    await _scan(log, DEAD_LETTERS, since_ms, timeline.dead_letter)
    if timeline.origins:
        for q, offset in sorted(timeline.origins):
            topic, _, index = q.rpartition("/")
            async for record in read_span(log, Partition(topic, int(index)), offset, offset + 1):
                timeline.request(record)
        await _scan(log, FENCES, since_ms, timeline.fence)
    else:
        for tier in TIERS:
            await _scan(log, request_topic(pool, tier), since_ms, timeline.request)
    return timeline.sorted()


def shortened(entries: Sequence[Entry]) -> list[Entry]:
    """From the request's own beginning on, with token events of one epoch in a row as one entry."""
    own = next((i for i, it in enumerate(entries) if it.what in SAME_RANK), 0)
    rows = [list(row) for _, row in groupby(entries[own:], key=_says)]
    short: list[Entry] = []
    for row in rows:
        if row[0].what != "tokens" or len(row) == 1:
            short += row
            continue
        first = row[0].how.rpartition(EPOCH)[0]
        short.append(replace(row[0], how=f"{len(row)} events: {first} ... {row[-1].how}"))
    return short


def _says(entry: Entry) -> tuple[str, str, bool]:
    return entry.what, entry.how.rpartition(EPOCH)[2], INVISIBLE in entry.how


async def _scan(
    log: Log, topic: str, since_ms: int, feed: Callable[[Record], None], only: int | None = None
) -> None:
    count = await log.partition_count(topic)
    chosen = [Partition(topic, i) for i in range(count) if only in {None, i}]
    starts = await log.offsets_at(dict.fromkeys(chosen, since_ms))
    ends = await log.end_offsets(chosen)
    for partition in chosen:
        end = min(ends[partition], starts[partition] + RECORDS_MAX)
        async for record in read_span(log, partition, starts[partition], end):
            try:
                feed(record)
            except UndecodableRecord:
                continue


class Timeline:
    """Fed with records of each topic; keeps what concerns one request."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.origins: set[tuple[str, int]] = set()
        self._found: list[Entry] = []
        self._epochs: dict[str, int] = {}
        self._fences: list[tuple[Record, Fence]] = []

    def sorted(self) -> list[Entry]:
        """By time; what has the same millisecond in the order in which it must have happened."""
        qs = {q for q, _ in self.origins}
        for record, fence in self._fences:
            mine = [q for q in fence.qs if q in qs]
            if mine:
                self._add(
                    record, "fence", f"epochs of {', '.join(mine)} below {fence.epoch} end here"
                )
        return sorted(self._found, key=lambda it: (it.time_ms, SAME_RANK.get(it.what, 3)))

    def _add(self, record: Record, what: str, how: str) -> None:
        where = f"{record.topic}/{record.partition}@{record.offset}"
        self._found.append(Entry(record.time_ms, what, where, how))

    def request(self, record: Record) -> None:
        """A record of a request topic."""
        if header_text(record.headers, REQUEST_ID) == self.request_id:
            size = len(record.value or b"")
            tier = record.topic.rpartition(".")[2]
            self._add(record, "request", f"published, tier {tier}, {size} bytes")

    def claim(self, record: Record) -> None:
        """A record of `claims`. The key itself is the client's business."""
        claim = decode_claim(record.value)
        if claim.request_id == self.request_id:
            self._add(record, "claim", f"for {claim.q}, lives {claim.life_seconds:g} s")

    def control(self, record: Record) -> None:
        """A record of `control`."""
        control = decode_control(record.value)
        if control.request_id == self.request_id:
            self._add(record, control.kind, control.reason or "")

    def usage(self, record: Record) -> None:
        """A record of `usage`."""
        it = decode_usage(record.value)
        if it.request_id == self.request_id:
            how = (
                f"{it.outcome}: {it.prompt_tokens} in ({it.cached_tokens} cached), "
                f"{it.completion_tokens} out, queued {it.queue_seconds:.3f} s, "
                f"ran {it.run_seconds:.3f} s"
            )
            self._add(record, "usage", how)

    def dead_letter(self, record: Record) -> None:
        """A record of `dead-letters`."""
        it = decode_letter(record.value)
        if isinstance(it, LetterMark):
            if self.request_id in (it.request_id, it.new_id):
                how = f"letter {it.partition}/{it.offset}" + (f" as {it.new_id}" * bool(it.new_id))
                self._add(record, it.action, how)
        elif it.request_id == self.request_id:
            where = f"{it.topic}/{it.partition}@{it.offset}"
            self._add(record, "dead letter", f"{where}: {it.reason}")

    def fence(self, record: Record) -> None:
        """A record of `fences`: owners of this request's partition."""
        it = decode_fence(record.value)
        if isinstance(it, Fenced):
            return
        qs = [q for q, _ in self.origins if q in it.qs]
        if qs and isinstance(it, Acquired):
            how = f"{it.incarnation} takes {', '.join(qs)} under epoch {record.offset}"
            self._add(record, "acquired", how)
        elif qs and isinstance(it, Still):
            self._add(record, "still owned", f"by {it.incarnation} under epoch {it.epoch}")

    def reply(self, record: Record) -> None:
        """A record of the request's reply partition."""
        reply = decode_reply(record.value)
        if isinstance(reply, Fence):
            for q in reply.qs:
                self._epochs[q] = max(reply.epoch, self._epochs.get(q, -1))
            self._fences.append((record, reply))
        elif isinstance(reply, Accepted):
            if reply.id == self.request_id:
                info = reply.info
                self._add(
                    record, "accepted", f"{info.endpoint}, model {info.model}, tier {info.tier}"
                )
        else:
            for event in reply.events:
                self._event(record, event)

    def _event(self, record: Record, event: AnyEvent) -> None:
        known = self._epochs.get(event.q, -1)
        if event.id != self.request_id:
            self._epochs[event.q] = max(known, event.epoch)
            return
        self.origins.add((event.q, event.offset))
        hidden = event.epoch < known
        self._epochs[event.q] = max(known, event.epoch)
        how = _describe(event) + (f", {INVISIBLE}" if hidden else "")
        self._add(record, type(event).__name__.lower(), f"{how}{EPOCH}{event.epoch})")


def _describe(event: AnyEvent) -> str:
    match event:
        case Started():
            going_on = f", goes on after {sum(event.counts)} tokens" if sum(event.counts) else ""
            return f"by {event.worker}, start {event.starts}{going_on}"
        case Tokens():
            last = event.seq + len(event.token_ids) - 1
            choice = f" of choice {event.choice}" if event.choice else ""
            ending = f", ends: {event.finish_reason}" if event.finish_reason else ""
            return f"tokens {event.seq} to {last}{choice}{ending}"
        case Finished():
            usage = event.usage
            return f"{usage.prompt_tokens} in, {usage.completion_tokens} out"
        case Failed():
            return f"{event.error.code} after {sum(event.counts)} tokens"
        case Expired():
            return f"{event.deadline} deadline, after {sum(event.counts)} tokens"
    return f"after {sum(getattr(event, 'counts', ()))} tokens"
