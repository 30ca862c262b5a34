"""What must hold after any fault: by what the clients saw, and by what lies on the log.

The history checker (`tests.checker`) judges; here its history is put together, and what only the
drivers of real processes know is added.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.requests import TIERS, Request
from tests.checker.history import History
from tests.checker.plain_reader import Key
from tests.checker.rules import judge
from tests.checker.topics_read import TopicsRead, read_topics
from tests.faults.clients import Clients
from tests.faults.operation import NOTHING_APPENDED, POISON, Operation
from tests.faults.recorded import record
from topics.catalogue import request_topic
from topics.kafka import KafkaLog
from topics.ports import Log, Partition

ALLOWED = NOTHING_APPENDED | {"unreachable", "outcome_unknown"}
QUIET_SECONDS = 30.0


@dataclass(slots=True)
class LogView:
    """All that is on the log, and what of it was not committed in time: q -> (committed, end)."""

    history: History
    read: TopicsRead
    uncommitted: dict[str, tuple[int, int]]

    def requests(self) -> dict[Key, list[Request]]:
        """By tenant and id, every copy that can be read."""
        found: dict[Key, list[Request]] = {}
        for request, _ in self.read.requests.values():
            if request is not None:
                found.setdefault((request.tenant, request.id), []).append(request)
        return found


async def view(bootstrap: str, pool: str = "default") -> LogView:
    """Waits until everything is committed, then reads the log as a stranger would."""
    log = KafkaLog(bootstrap, client_id="verdict")
    try:
        uncommitted = await _until_committed(log, pool)
        history = await record(log, pool)
        history.poison = POISON
        return LogView(history, read_topics(history), uncommitted)
    finally:
        await log.close()


async def _until_committed(log: Log, pool: str) -> dict[str, tuple[int, int]]:
    """What is not committed when the limit is over."""
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


def violations(clients: Clients, found: LogView) -> list[str]:
    """A sentence for each broken promise; empty if all is well."""
    history = found.history
    history.attempts = clients.attempts
    history.broken += [
        f"{q}: committed {committed} of {end}" for q, (committed, end) in found.uncommitted.items()
    ]
    history.scripted = clients.model == "scripted"
    history.secrets += [clients.key, *(it.prompt for it in clients.history)]
    wrong = [str(it) for it in judge(history, found.read)]
    wrong += [text for it in clients.history for text in _of_client(it, history.scripted)]
    by_key: dict[str, set[str]] = {}
    for it in clients.history:
        if it.key is not None and it.request_id is not None:
            by_key.setdefault(it.key, set()).add(it.request_id)
    return wrong + [
        f"I3: {key} was answered by {ids}" for key, ids in by_key.items() if len(ids) > 1
    ]


def _of_client(it: Operation, scripted: bool) -> Iterator[str]:
    """An operation may take many calls: what its client had in the end."""
    name = f"request {it.number} ({it.kind}, {it.request_id})"
    expected = it.expected() if scripted else it.text
    if not expected.startswith(it.text):
        yield f"I2: {name}: lost, repeated or foreign tokens: {it.text[-60:]!r}"
    whole = it.outcome == "ok" and it.kind not in ("cancelled", "closed")
    short = it.kind == "stream" and it.position != it.max_tokens
    if whole and (it.text != expected or short):
        yield f"I2: {name}: ended after {it.position} of {it.max_tokens} tokens"
    if it.outcome == "failed" and (it.request_id is not None or it.error not in ALLOWED):
        yield f"I1: {name}: failed with {it.error}"
