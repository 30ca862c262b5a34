"""A dead letter is a record that can be appended and read, whatever was parked."""

from typing import Any

import pytest

from consumers.inference.accounts import Accounts
from consumers.inference.intake import Parked
from schemas.codec import decode_dead_letter
from topics.memory import MemoryLog
from topics.ports import Record

MIB = 1024 * 1024


class Ledger:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def put(self, _topic: str, _partition: int, _key: bytes, value: bytes, **_: Any) -> None:
        self.values.append(value)


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (b"k", (("h", b"v"),)),
        (b"k" * 2 * MIB, ()),
        (b"k", (("h", b"v" * 2 * MIB),)),
        (b"k", (("\x01" * MIB, b""),)),
        (b"k" * 65536, (("\x01" * 65000, b"v"),)),
        (None, tuple((f"h{index}", b"v" * 100) for index in range(20_000))),
    ],
)
async def test_a_letter_has_room_for_what_it_keeps(
    key: bytes | None, headers: tuple[tuple[str, bytes], ...]
) -> None:
    ledger = Ledger()
    log = MemoryLog()
    accounts = Accounts(log, ledger, lambda: 0.0)  # type: ignore[arg-type]
    log.partition_of_key = lambda *_: 0  # type: ignore[method-assign]
    record = Record("requests.default.standard", 0, 7, 0, key, b"{" * 2 * MIB, headers)
    accounts.dead_letter(record, Parked("undecodable", "x" * 1000), lambda: None)
    letter = decode_dead_letter(ledger.values[0])
    assert letter.value == b"{" * MIB
    assert f"bytes of {2 * MIB}" in letter.detail or f"of {2 * MIB} bytes" in letter.detail
    assert (letter.key == key) != ("without its key" in letter.detail)
    assert (letter.headers == headers) != (f"without its {len(headers)} headers" in letter.detail)
