"""An answer's head goes with the first piece of its body, and never waits for it longer than a turn."""

import asyncio
from typing import Any

from producer_api.joined_writes import JoinedWrites


class Wire:
    """A transport that keeps its writes apart."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.writes


def joined(wire: Any) -> JoinedWrites:
    return JoinedWrites(wire, asyncio.get_running_loop())


async def test_head_and_body_of_one_turn_are_one_write() -> None:
    wire = Wire()
    answer = joined(wire)
    answer.write(b"head ")
    answer.write(b"body")
    answer.write(b"more")
    assert wire.writes == [b"head body", b"more"]
    await asyncio.sleep(0)
    assert wire.writes == [b"head body", b"more"]


async def test_a_head_waits_no_longer_than_the_turn() -> None:
    wire = Wire()
    answer = joined(wire)
    answer.write(b"head ")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"head "]
    answer.write(b"body")
    assert wire.writes == [b"head ", b"body"]


async def test_an_empty_body_lets_the_head_go() -> None:
    wire = Wire()
    answer = joined(wire)
    answer.write(b"head")
    answer.write(b"")
    assert wire.writes == [b"head"]


async def test_nothing_is_lost_by_closing() -> None:
    wire = Wire()
    answer = joined(wire)
    answer.write(b"head")
    assert not answer.is_closing()
    answer.close()
    assert wire.writes == [b"head", b"closed"]
    assert answer.is_closing()
    await asyncio.sleep(0)
    assert wire.writes == [b"head", b"closed"]


async def test_what_nobody_can_get_is_let_go() -> None:
    wire = Wire()
    answer = joined(wire)
    answer.write(b"head")
    wire.close()
    await asyncio.sleep(0)
    assert wire.writes == [b"closed"]
