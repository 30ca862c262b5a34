"""Reading one reply partition from an earlier point on, with epochs that are right from there."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from core.stream import Key, Reader
from schemas.codec import UndecodableRecord, decode_reply, is_foreign
from schemas.replies import ReplyRecord
from topics.fence_tail import FenceTail
from topics.ports import Log, Partition, Record
from topics.read_size import SCAN_BYTES_MAX

REPLIES = "replies"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LateStart:
    """A reader with its floors, the position to read from, and whether retention cut that off."""

    reader: Reader
    position: int
    truncated: bool


async def late_reader(
    log: Log,
    fence_tail: FenceTail,
    partition: int,
    position: int,
    watched: Callable[[Key], object] | None = None,
) -> LateStart:
    """Makes a reader that will see all that is visible from `position` of a reply partition on.

    `position` must be known before the call (fences are read to an end taken after it). Where
    retention has taken it, reading starts at the log's start and `truncated` says so.
    """
    here = Partition(REPLIES, partition)
    log_start = (await log.start_offsets([here]))[here]
    truncated = position < log_start
    position = max(position, log_start)
    await fence_tail.caught_up()
    floors, start = fence_tail.fences.late_start(partition, position)
    return LateStart(Reader(floors, watched), max(start, log_start), truncated)


async def scan(
    log: Log, partition: int, position: int, end: int
) -> AsyncIterator[tuple[Record, ReplyRecord]]:
    """Yields every record of a reply partition in [position, end), decoded, then ends.

    Raises UndecodableRecord (a fold must not skip an event that it cannot read), LogError,
    OffsetOutOfRange. What can be nobody's event is passed over: it would keep every partition from
    being taken over for as long as `replies` keeps it.
    """
    here = Partition(REPLIES, partition)
    if position >= end:
        return
    tail = await log.tail({here: position})
    try:
        while position < end:
            for record in await tail.read(max_wait_seconds=0.5, max_bytes=SCAN_BYTES_MAX):
                if record.offset >= end:
                    return
                try:
                    reply = decode_reply(record.value)
                except UndecodableRecord as error:
                    if not is_foreign(record.value):
                        raise
                    _log.error("%s offset %s is no reply: %s", here, record.offset, error)
                    continue
                yield record, reply
            position = tail.position(here)
    finally:
        await tail.close()
