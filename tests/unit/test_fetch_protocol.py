"""A tail's own Fetch messages against aiokafka's codecs, and what is inside of a batch."""

import struct

import pytest
from aiokafka.errors import CorruptRecordException, IncompatibleBrokerVersion
from aiokafka.protocol.fetch import FetchRequest_v4, FetchResponse_v4
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c_py

from topics.kafka.fetch_protocol import (
    FetchedRecords,
    FetchRequest,
    check_version,
    decode_answer,
)
from topics.ports import Partition, Record
from topics.read_size import record_bytes

HERE = Partition("replies", 3)


def batch(
    *values: bytes | None,
    offset: int = 0,
    compression: int = 0,
    headers: tuple[tuple[str, bytes], ...] = (),
) -> bytes:
    """As a broker keeps it: its builder writes offset 0, a broker puts the right one in front."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, 1000 + index, b"key", value, list(headers))
    return struct.pack(">q", offset) + bytes(builder.build())[8:]


ROOM_BYTES = 1 << 20


def taken(data: bytes, offset: int, count: int = 100) -> list[Record]:
    records: list[Record] = []
    FetchedRecords(HERE, data, offset).take(records, count, ROOM_BYTES)
    return records


def test_requests_are_what_aiokafka_would_send() -> None:
    offsets = {Partition("a", 0): 7, Partition("b", 1): 1 << 40, Partition("a", 5): 0}
    ours = FetchRequest(offsets, wait_ms=1000, partition_bytes=99)
    topics = [("a", [(0, 7, 99), (5, 0, 99)]), ("b", [(1, 1 << 40, 99)])]
    theirs = FetchRequest_v4(-1, 1000, 1, 50 * 1024 * 1024, 0, topics)
    header = theirs.build_request_header(correlation_id=41, client_id="inferlog-é")
    message = header.encode() + theirs.encode()
    assert ours.encode(41, "inferlog-é") == struct.pack(">i", len(message)) + message


def test_a_broker_that_does_not_speak_it_is_told_so() -> None:
    check_version({1: (4, 17)})
    for versions in ({1: (5, 17)}, {1: (0, 3)}, {}):
        with pytest.raises(IncompatibleBrokerVersion):
            check_version(versions)


def test_answers_are_read_as_aiokafka_writes_them() -> None:
    topics = [
        ("replies", [(3, 0, 10, 10, [], b"data"), (0, 6, -1, -1, [(1, 2), (3, 4)], b"")]),
        ("claims", [(1, 1, 5, 5, None, None)]),
    ]
    body = FetchResponse_v4(0, topics).encode()
    assert decode_answer(b"head" + body, 4) == [
        (Partition("replies", 3), 0, b"data"),
        (Partition("replies", 0), 6, b""),
        (Partition("claims", 1), 1, b""),
    ]


def test_an_answer_cut_short_is_an_error() -> None:
    body = FetchResponse_v4(0, [("replies", [(3, 0, 10, 10, [], b"")])]).encode()
    with pytest.raises(struct.error):
        decode_answer(body[:-2], 0)


@pytest.mark.parametrize("compression", [0, 1])
def test_records_come_from_the_asked_offset_on(compression: int) -> None:
    data = batch(b"0", b"1", b"2", offset=10, compression=compression) + batch(b"3", offset=13)
    assert [(it.offset, it.value) for it in taken(data, 11)] == [(11, b"1"), (12, b"2"), (13, b"3")]
    first = taken(data, 0)[0]
    assert first == Record("replies", 3, 10, 1000, b"key", b"0", ())


def test_headers_and_missing_values() -> None:
    (record,) = taken(batch(b"x", headers=(("trace", b"1"), ("none", None))), 0)  # type: ignore[arg-type]
    assert record.headers == (("trace", b"1"), ("none", b""))


def test_they_are_taken_a_few_at_a_time() -> None:
    records: list[Record] = []
    fetched = FetchedRecords(HERE, batch(b"0", b"1", b"2"), 0)
    fetched.take(records, 2, ROOM_BYTES)
    assert (len(records), fetched.next_offset, fetched.more) == (2, 2, True)
    fetched.take(records, 2, ROOM_BYTES)
    assert (len(records), fetched.next_offset, fetched.more) == (3, 3, False)


def test_they_are_taken_until_they_fill_the_room() -> None:
    records: list[Record] = []
    values = b"000", b"111", None, b"22", b"3"
    each = [record_bytes(it) for it in taken(batch(*values), 0)]
    assert each[2] > len(b"key"), "what has no value fills something, too"
    fetched = FetchedRecords(HERE, batch(*values), 0)
    assert fetched.take(records, 100, each[0] + 1) == 1 - each[1]
    assert (len(records), fetched.next_offset, fetched.more) == (2, 2, True)
    assert fetched.take(records, 100, each[2] + each[3]) == 0
    assert (len(records), fetched.next_offset, fetched.more) == (4, 4, True)
    assert fetched.take(records, 100, each[4] + 3) == 3
    assert (len(records), fetched.next_offset, fetched.more) == (5, 5, False)


def test_behind_damage_nothing_is_read_and_before_it_all() -> None:
    damaged = bytearray(batch(b"two", offset=2))
    damaged[-1] ^= 1
    records: list[Record] = []
    fetched = FetchedRecords(HERE, batch(b"0", b"1") + bytes(damaged), 0)
    with pytest.raises(CorruptRecordException, match="checksum at 2"):
        fetched.take(records, 100, ROOM_BYTES)
    assert not fetched.more
    assert [it.value for it in records] == [b"0", b"1"]
    assert fetched.next_offset == 2


def test_a_batch_that_is_not_whole_is_none() -> None:
    whole = batch(b"0", b"1")
    assert len(taken(whole + whole[:20], 0)) == 2  # the rest comes with the next fetch
    with pytest.raises(CorruptRecordException, match="no whole batch"):
        taken(whole[:40], 0)


def test_what_holds_no_record_is_passed() -> None:
    control = bytearray(batch(b"marker", offset=5))
    control[22] |= 0x20  # the attributes' control bit
    with pytest.raises(CorruptRecordException):
        taken(bytes(control), 5)
    control[17:21] = struct.pack(">I", calc_crc32c_py(bytes(control[21:])))
    records: list[Record] = []
    fetched = FetchedRecords(HERE, bytes(control), 5)
    assert fetched.take(records, 10, ROOM_BYTES) == ROOM_BYTES
    assert not fetched.more
    assert (records, fetched.next_offset) == ([], 6)
