"""What must hold after any fault: by what the clients saw, and by what lies on the log."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.stream import Key, Reader, StreamState
from schemas.codec import decode_letter, decode_reply, decode_request
from schemas.operations import DeadLetter
from schemas.replies import Finished, Tokens
from schemas.requests import TIERS, Request
from tests.faults.clients import NOTHING_APPENDED, Operation, scripted_answer
from topics.catalogue import DEAD_LETTERS, REPLIES, request_topic
from topics.kafka import KafkaLog
from topics.ports import Log, Partition, Record

ALLOWED = NOTHING_APPENDED | {"unreachable", "outcome_unknown"}
QUIET_SECONDS = 30.0


@dataclass(slots=True)
class LogView:
    """All that is on the log: requests by key, the state a reader ends with, visible texts."""

    requests: dict[Key, list[Request]] = field(default_factory=dict)
    states: dict[Key, StreamState] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)
    stale: set[Key] = field(default_factory=set)
    """Appended after their whole deadline: dead letters alone, their clients are told `expired`."""
    uncommitted: dict[str, tuple[int, int]] = field(default_factory=dict)


async def read_all(log: Log, partition: Partition) -> list[Record]:
    """Every record of a partition up to its end now."""
    end = (await log.end_offsets([partition]))[partition]
    start = (await log.start_offsets([partition]))[partition]
    tail = await log.tail({partition: start})
    records: list[Record] = []
    try:
        while tail.position(partition) < end:
            records += await tail.read(max_wait_seconds=0.5)
    finally:
        await tail.close()
    return records


async def view(bootstrap: str, pool: str = "default") -> LogView:
    """Waits until everything is committed, then reads the log as a stranger would."""
    log = KafkaLog(bootstrap, client_id="verdict")
    try:
        found = LogView(uncommitted=await _until_committed(log, pool))
        await _read_requests(log, pool, found)
        await _read_stale(log, found)
        await _read_replies(log, found)
        return found
    finally:
        await log.close()


async def _read_requests(log: Log, pool: str, found: LogView) -> None:
    for tier in TIERS:
        topic = request_topic(pool, tier)
        for index in range(await log.partition_count(topic)):
            for record in await read_all(log, Partition(topic, index)):
                request = decode_request(record.value)
                found.requests.setdefault((request.tenant, request.id), []).append(request)


async def _read_stale(log: Log, found: LogView) -> None:
    for index in range(await log.partition_count(DEAD_LETTERS)):
        for record in await read_all(log, Partition(DEAD_LETTERS, index)):
            letter = decode_letter(record.value)
            if isinstance(letter, DeadLetter) and letter.reason == "stale_id":
                found.stale.add((letter.tenant or "", letter.request_id or ""))


async def _read_replies(log: Log, found: LogView) -> None:
    for index in range(await log.partition_count(REPLIES)):
        reader = Reader()
        for record in await read_all(log, Partition(REPLIES, index)):
            for event in reader.feed(decode_reply(record.value)):
                key = (event.tenant, event.id)
                if isinstance(event, Tokens):
                    found.texts[key] = found.texts.get(key, "") + event.text
        found.states |= reader.states


async def _until_committed(log: Log, pool: str) -> dict[str, tuple[int, int]]:
    """What is not committed when the limit is over: partition -> (committed, end)."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + QUIET_SECONDS
    while True:
        behind: dict[str, tuple[int, int]] = {}
        for tier in TIERS:
            topic = request_topic(pool, tier)
            qs = [Partition(topic, i) for i in range(await log.partition_count(topic))]
            ends = await log.end_offsets(qs)
            committed = await log.committed(f"inferlog.{topic}", qs)
            for q in qs:
                at = committed[q].offset if q in committed else 0
                if at < ends[q]:
                    behind[str(q)] = (at, ends[q])
        if not behind or loop.time() > until_s:
            return behind
        await asyncio.sleep(0.2)


def violations(history: Sequence[Operation], found: LogView, tenant: str = "default") -> list[str]:
    """A sentence for each broken promise; empty if all is well."""
    wrong = [sentence for it in history for sentence in _of_client(it, found, tenant)]
    wrong += [sentence for key in found.requests for sentence in _of_log(key, found)]
    wrong += [
        f"I10 {q}: committed {committed} of {end}"
        for q, (committed, end) in found.uncommitted.items()
    ]
    by_key: dict[str, set[str]] = {}
    for it in history:
        if it.key is not None and it.request_id is not None:
            by_key.setdefault(it.key, set()).add(it.request_id)
    return wrong + [f"I3 {key}: answered by {ids}" for key, ids in by_key.items() if len(ids) > 1]


def _of_client(it: Operation, found: LogView, tenant: str) -> Iterator[str]:
    name = f"request {it.number} ({it.kind}, {it.request_id})"
    expected = it.expected()
    if not expected.startswith(it.text):
        yield f"I2 {name}: lost, repeated or foreign tokens: {it.text[-60:]!r}"
    if it.outcome == "ok" and it.kind not in ("cancelled", "closed") and it.text != expected:
        yield f"I2 {name}: ended after {it.position} of {it.max_tokens} tokens"
    if it.outcome == "failed" and (it.request_id is not None or it.error not in ALLOWED):
        yield f"I1 {name}: failed with {it.error}"
    if it.request_id is not None and (tenant, it.request_id) not in found.requests:
        yield f"I1 {name}: was accepted and is not on the log"


def _of_log(key: Key, found: LogView) -> Iterator[str]:
    state = found.states.get(key)
    if key in found.stale and (state is None or state.origin is None):
        return  # nothing was ever said of it
    if state is None or state.terminal is None:
        yield f"I1 {key[1]}: has no terminal"
        return
    body = found.requests[key][0].body
    expected = scripted_answer(body.prompt or "", body.max_tokens or 0)
    text = found.texts.get(key, "")
    if not expected.startswith(text):
        yield f"I2 {key[1]}: the log shows {text[-60:]!r}"
    if isinstance(state.terminal, Finished) and text != expected:
        yield f"I2 {key[1]}: finished with {len(text)} of {len(expected)} characters"
