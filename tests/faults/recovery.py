"""How long an answer stood still when its worker was killed, read off the log."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.codec import decode_reply
from schemas.replies import Events, Started, Terminal, Tokens
from tests.faults.recorded import read_whole
from topics.catalogue import REPLIES
from topics.kafka import KafkaLog


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker (the end of its id) that was killed at a wall-clock time of this machine, the broker's."""

    worker: str
    time_ms: float


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a request: when it was appended, by whom, and what it was."""

    time_ms: int
    worker: str
    kind: type


async def recoveries(bootstrap: str, kills: Sequence[Kill]) -> list[float]:
    """For each request that ran on a killed worker, seconds from the kill to its next new token.

    A request that had said all its tokens, so that only its end was missing, counts by its end.
    """
    lives = await _lives(bootstrap)
    return [
        seconds
        for kill in kills
        for life in lives
        if (seconds := _recovery(life, kill)) is not None
    ]


async def _lives(bootstrap: str) -> list[list[Said]]:
    log = KafkaLog(bootstrap, client_id="recovery")
    lives: dict[str, list[Said]] = {}
    speakers: dict[tuple[str, int], str] = {}
    try:
        for records in (await read_whole(log, [REPLIES])).values():
            for record in records:
                reply = decode_reply(record.value)
                if not isinstance(reply, Events):
                    continue
                for event in reply.events:
                    if isinstance(event, Started):
                        speakers[event.q, event.epoch] = event.worker
                    worker = speakers.get((event.q, event.epoch), "")
                    said = Said(record.time_ms, worker, type(event))
                    lives.setdefault(event.id, []).append(said)
    finally:
        await log.close()
    return list(lives.values())


def _recovery(life: Sequence[Said], kill: Kill) -> float | None:
    before = [it for it in life if it.time_ms <= kill.time_ms]
    if not before or not before[-1].worker.endswith(kill.worker):
        return None
    if any(issubclass(it.kind, Terminal) for it in before):
        return None
    for it in life[len(before) :]:
        new = it.worker != before[-1].worker or not it.worker
        if new and issubclass(it.kind, Tokens | Terminal):
            return (it.time_ms - kill.time_ms) / 1000
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
