"""Everything that real processes left on a cluster, as a history for the checker.

What Kafka tells of order is a time: the brokers of these tests share one clock, and stamp each record
when they append it, commits in `__consumer_offsets` too. So records are put in one order by their
times, within a partition by their offsets.
"""

import heapq
import struct
from bisect import bisect_right

from schemas.requests import TIERS
from tests.checker.history import Commit, History, Stored
from topics.catalogue import CLAIMS, CONTROL, DEAD_LETTERS, FENCES, REPLIES, USAGE, request_topic
from topics.ports import Log, Partition, Record

OFFSETS = "__consumer_offsets"
BESIDE = (REPLIES, FENCES, CONTROL, CLAIMS, USAGE, DEAD_LETTERS)


async def record(log: Log, pool: str = "default") -> History:
    """All topics up to their ends now; whoever drove the processes adds what clients saw."""
    topics = [*(request_topic(pool, tier) for tier in TIERS), *BESIDE]
    stored = [
        Stored(serial, it)
        for serial, it in enumerate(
            heapq.merge(
                *(await read_whole(log, topics)).values(),
                key=lambda it: it.time_ms,
            )
        )
    ]
    times_ms = sorted(it.record.time_ms for it in stored)
    # of one group, all lie in one partition, in the order in which they were accepted
    committed = (await read_whole(log, [OFFSETS])).values()
    found = (_commit(it, times_ms) for records in committed for it in records)
    commits = [it for it in found if it is not None]
    return History(stored=stored, commits=commits)


async def read_whole(log: Log, topics: list[str]) -> dict[Partition, list[Record]]:
    """Every record of some topics, up to their ends now."""
    partitions = [
        Partition(topic, index)
        for topic in topics
        for index in range(await log.partition_count(topic))
    ]
    starts = await log.start_offsets(partitions)
    ends = await log.end_offsets(partitions)
    found: dict[Partition, list[Record]] = {it: [] for it in partitions}
    tail = await log.tail(starts)
    try:
        while any(tail.position(it) < ends[it] for it in partitions):
            for it in await tail.read(max_wait_seconds=0.5):
                here = Partition(it.topic, it.partition)
                if it.offset < ends[here]:
                    found[here].append(it)
    finally:
        await tail.close()
    return found


def _commit(record: Record, times_ms: list[int]) -> Commit | None:
    """A commit of one of our groups; None: another record of Kafka's own."""
    key, value = _Bytes(record.key or b"\xff\xff"), record.value
    if key.int16() not in (0, 1) or value is None:
        return None
    group, topic, partition = key.text(), key.text(), key.int32()
    if not group.startswith("inferlog."):
        return None
    said = _Bytes(value)
    version, offset, _ = said.int16(), said.int64(), said.int32()
    assert version in (3, 4), f"commits of version {version} are not known here"
    metadata = said.text() if version == 3 else said.short_text()
    serial = bisect_right(times_ms, record.time_ms)
    return Commit(serial, record.time_ms, group, f"{topic}/{partition}", offset, metadata)


class _Bytes:
    """Kafka's plain encoding, read from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, form: str) -> int:
        (found,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(found)

    def int16(self) -> int:
        return self._take(">h")

    def int32(self) -> int:
        return self._take(">i")

    def int64(self) -> int:
        return self._take(">q")

    def text(self) -> str:
        return self._text(self.int16())

    def short_text(self) -> str:
        """As of the later versions: its length and one, in as few bytes as it takes."""
        length, shift = 0, 0
        while (byte := self._take(">B")) & 0x80:
            length |= (byte & 0x7F) << shift
            shift += 7
        return self._text((length | byte << shift) - 1)

    def _text(self, length: int) -> str:
        self._at += length
        return self._data[self._at - length : self._at].decode()
