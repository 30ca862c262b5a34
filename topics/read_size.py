"""How much of the log is given to a reader at once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topics.ports import Record

READ_BYTES_MAX = 16 * 1024
"""A tail's read ends with the record that fills so many bytes. Who reads works through it in one turn of the
event loop, so this bounds that turn: 60 to 90 tokens, which a replica sends in 1 to 3 ms, and what the last
record holds beyond them. Of a worker that is some 128 events, 25 to 35 KiB (`consumers/inference/replies.py`)."""
SCAN_BYTES_MAX = 16 * READ_BYTES_MAX
"""The same for who looks for few among many: what is nobody's costs a tenth."""


def record_bytes(record: "Record") -> int:
    """What a record weighs, about as Kafka counts it."""
    weight = 70
    if record.value:
        weight += len(record.value)
    if record.key:
        weight += len(record.key)
    if record.headers:
        weight += sum(len(name) + len(value) for name, value in record.headers)
    return weight
