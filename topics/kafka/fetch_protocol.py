"""Kafka's Fetch as bytes (API 1, version 4: all brokers from 0.11 on), and what it brings as records.

A tail fetches at every step of an engine. aiokafka's consumer passes each answer through five tasks and
generic codecs, which took 0.2 ms of CPU more (docs/adr/0009-tails-fetch-by-themselves.md); so tails build and
read these messages by themselves. Connecting, sign-in and metadata stay aiokafka's, and so does what is inside of
a batch: compression, checksums, headers.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from aiokafka.errors import CorruptRecordException, IncompatibleBrokerVersion
from aiokafka.record.memory_records import MemoryRecords

from topics.ports import Partition, Record
from topics.read_size import record_bytes

API_KEY = 1
VERSION = 4
RESPONSE_BYTES_MAX = 50 * 1024 * 1024
"""Of all partitions together; the first record of the first one comes whatever its size."""

_HEAD = struct.Struct(">hhih")  # API, version, correlation id, length of the client's name
_BODY = struct.Struct(">iiiibi")  # replica, wait, least bytes, most bytes, isolation, topics
_ASK = struct.Struct(">iqi")  # partition, offset, most bytes
_ANSWER = struct.Struct(">ihqqi")  # partition, error, high watermark, last stable, aborted
_INT = struct.Struct(">i")
_SHORT = struct.Struct(">h")
_ABORTED_BYTES = 16


class Fetched(NamedTuple):
    """What an answer says of one partition. `code` 0: no error."""

    partition: Partition
    code: int
    data: bytes


def check_version(versions: Mapping[int, tuple[int, int]]) -> None:
    """Raises IncompatibleBrokerVersion for a broker (API -> oldest, newest) that does not speak this one."""
    least, most = versions.get(API_KEY, (0, 0))
    if not least <= VERSION <= most:
        raise IncompatibleBrokerVersion(f"Fetch {VERSION} is not in {least} to {most}")


class FetchRequest:
    """Asks for records from the given offsets on."""

    def __init__(
        self, offsets: Mapping[Partition, int], *, wait_ms: int, partition_bytes: int
    ) -> None:
        by_topic: defaultdict[str, list[bytes]] = defaultdict(list)
        for (topic, index), offset in offsets.items():
            by_topic[topic].append(_ASK.pack(index, offset, partition_bytes))
        parts = [_BODY.pack(-1, wait_ms, 1, RESPONSE_BYTES_MAX, 0, len(by_topic))]
        for topic, asked in by_topic.items():
            name = topic.encode()
            parts += [_SHORT.pack(len(name)), name, _INT.pack(len(asked)), *asked]
        self.body = b"".join(parts)

    def encode(self, correlation_id: int, client_id: str) -> bytes:
        """As it is sent, its length in front."""
        name = client_id.encode()
        length = _HEAD.size + len(name) + len(self.body)
        head = _HEAD.pack(API_KEY, VERSION, correlation_id, len(name))
        return b"%b%b%b%b" % (_INT.pack(length), head, name, self.body)


def decode_answer(data: bytes, at: int) -> list[Fetched]:
    """What lies behind the correlation id, from `at` on. Raises struct.error if it is cut short."""
    found = []
    at += _INT.size  # the throttle time says nothing here
    (topics,) = _INT.unpack_from(data, at)
    at += _INT.size
    for _ in range(topics):
        (length,) = _SHORT.unpack_from(data, at)
        at += _SHORT.size
        topic = data[at : at + length].decode()
        (partitions,) = _INT.unpack_from(data, at + length)
        at += length + _INT.size
        for _ in range(partitions):
            index, code, _, _, aborted = _ANSWER.unpack_from(data, at)
            at += _ANSWER.size + _ABORTED_BYTES * max(0, aborted)
            (size,) = _INT.unpack_from(data, at)
            at += _INT.size
            end = at + max(0, size)
            found.append(Fetched(Partition(topic, index), code, data[at:end]))
            at = end
    return found


class FetchedRecords:
    """Records of one partition, unpacked as they are taken; `next_offset` is the one to read on from.

    It also passes what holds no record for anybody: ends of transactions, what compaction took.
    """

    def __init__(self, partition: Partition, data: bytes, offset: int) -> None:
        self.partition = partition
        self.next_offset = offset
        self.more = True
        self._records = self._unpack(data)

    def take(self, into: list[Record], count: int, room_bytes: int) -> int:
        """Appends so many records, or until they fill so many bytes; returns the bytes left, or fewer than 0.

        `more` says whether there may be others. Raises CorruptRecordException behind what was whole: that
        was appended.
        """
        self.more = False
        for record in islice(self._records, count):
            into.append(record)
            count -= 1
            room_bytes -= record_bytes(record)
            if room_bytes <= 0:
                break
        self.more = not count or room_bytes <= 0
        return room_bytes

    def _unpack(self, data: bytes) -> Iterator[Record]:
        topic, index = self.partition
        first = self.next_offset
        batches: Any = MemoryRecords(data)
        if data and not batches.has_next():
            raise CorruptRecordException(f"{self.partition}: no whole batch at {first}")
        while batches.has_next():
            batch = batches.next_batch()
            if not batch.validate_crc():
                raise CorruptRecordException(
                    f"{self.partition}: wrong checksum at {self.next_offset}"
                )
            if not batch.is_control_batch:
                for it in batch:
                    if it.offset >= first:  # a batch may begin before what was asked for
                        self.next_offset = it.offset + 1
                        # Kafka knows headers without a value; nobody behind this door does
                        headers = tuple((name, value or b"") for name, value in it.headers)
                        yield Record(
                            topic, index, it.offset, it.timestamp, it.key, it.value, headers
                        )
            self.next_offset = batch.next_offset
