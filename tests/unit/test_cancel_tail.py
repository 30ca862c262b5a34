"""What of `control` a worker acts on, and how far back it looks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from consumers.inference import cancels
from consumers.inference.cancels import EMPTY_READS_MAX, HERE, CancelTail
from schemas.codec import encode
from schemas.operations import Control
from topics.catalogue import CONTROL, TopicSettings, catalogue
from topics.memory import MemoryLog
from topics.ports import LogError, Partition, Record, Tail

SKEW_MS = 100


@dataclass
class Heard:
    """`control` under a clock that the test sets, a worker's tail of it, and what that has told."""

    now_ms: int = 1_000_000
    told: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = MemoryLog(clock_ms=lambda: self.now_ms)
        self.tail = CancelTail(self.log, SKEW_MS)

    async def say(self, *controls: Control) -> None:
        appender = await self.log.appender()
        for control in controls:
            await appender.append(CONTROL, 0, encode(control))
        await appender.close()

    async def cancel(self, request_id: str, at_ms: int) -> None:
        self.now_ms = at_ms
        await self.say(Control(kind="cancel", tenant="a", request_id=request_id))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        loops = await self.tail.start(self._hear)
        yield
        for loop in loops:
            loop.cancel()
        ends = await asyncio.gather(*loops, return_exceptions=True)
        assert all(isinstance(it, asyncio.CancelledError) for it in ends), ends
        await self.tail.close()

    def _hear(self, _tenant: str, request_id: str, earlier: bool) -> None:
        self.told.append(request_id)
        if earlier:
            self.looked_up.append(request_id)

    async def tells(self, *wanted: str) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < len(wanted):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert self.told == list(wanted)


@pytest.fixture
async def heard() -> Heard:
    it = Heard()
    await it.log.create(catalogue("default", TopicSettings()))
    return it


async def test_a_cancelled_and_a_deleted_request_stop_and_nothing_else_does(heard: Heard) -> None:
    async with heard.listening():
        await heard.say(
            Control(kind="cancel", tenant="a", request_id="1"),
            Control(kind="redeem", tenant="a", request_id="2", ticket="t", use="u"),
            Control(kind="delete", tenant="a", request_id="3"),
        )
        await heard.tells("1", "3")


async def test_who_takes_over_is_told_what_may_concern_what_was_appended_since(
    heard: Heard,
) -> None:
    await heard.cancel("too old to matter", 1_000_000)
    await heard.cancel("by a slow clock", 1_000_950)
    await heard.cancel("later", 1_005_000)
    async with heard.listening():
        await heard.tail.cover(1_001_000)
        assert heard.told == ["by a slow clock", "later"]
        await heard.cancel("now", 1_010_000)
        await heard.tells("by a slow clock", "later", "now")
        assert heard.looked_up == ["by a slow clock", "later"]


async def test_an_older_request_makes_it_look_further_back_and_nothing_is_told_twice(
    heard: Heard,
) -> None:
    await heard.cancel("old", 1_000_000)
    await heard.cancel("young", 1_005_000)
    async with heard.listening():
        heard.tail.look_back(1_005_000)
        await heard.tells("young")
        heard.tail.look_back(1_000_000)
        await heard.tells("young", "old")
        heard.tail.look_back(900_000)
        await heard.tail.cover(900_000)
        await heard.tells("young", "old")


async def test_what_is_known_is_not_asked_for(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    offsets_at = heard.log.offsets_at

    async def spy(times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        asked.extend(times_ms.values())
        return await offsets_at(times_ms)

    monkeypatch.setattr(heard.log, "offsets_at", spy)
    async with heard.listening():
        for made_ms in (1_000_002, 1_000_000, 1_000_001):
            heard.tail.look_back(made_ms)
        await asyncio.sleep(0.05)
        assert asked == [999_900], "all at once, for the oldest"
        for made_ms in (1_000_000, 1_000_001):
            heard.tail.look_back(made_ms)
        await asyncio.sleep(0.05)
        assert asked == [999_900]
        heard.tail.look_back(999_999)
        await asyncio.sleep(0.05)
        assert asked == [999_900, 999_899]
        await heard.tail.cover(1_000_050)
        heard.tail.look_back(999_999)
        await asyncio.sleep(0.05)
        assert asked == [999_900, 999_899, 999_950], "what is known stays so"
        await heard.tail.cover(900_000)
        heard.tail.look_back(900_000)
        await asyncio.sleep(0.05)
        assert asked == [999_900, 999_899, 999_950, 899_900]


async def test_older_requests_that_come_while_it_looks_back_are_served_as_well(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await heard.cancel("oldest", 1_000_000)
    await heard.cancel("old", 1_003_000)
    await heard.cancel("young", 1_006_000)
    offsets_at = heard.log.offsets_at

    async def slow(times_ms: Mapping[Partition, int]) -> dict[Partition, int]:
        await asyncio.sleep(0.03)
        return await offsets_at(times_ms)

    monkeypatch.setattr(heard.log, "offsets_at", slow)
    async with heard.listening():
        for made_ms in (1_006_000, 1_006_001, 1_003_000, 1_000_000, 1_000_500):
            heard.tail.look_back(made_ms)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while len(heard.told) < 3:
                await asyncio.sleep(0.01)
        assert heard.told[0] == "young"
        assert sorted(heard.told) == ["old", "oldest", "young"]


async def test_a_broker_that_is_away_is_asked_again(heard: Heard) -> None:
    await heard.cancel("before", 1_000_000)
    async with heard.listening():
        heard.log.stop()
        heard.tail.look_back(1_000_000)
        with pytest.raises(LogError):
            await heard.tail.cover(1_000_000)
        await asyncio.sleep(0.3)
        assert heard.told == []
        heard.log.start()
        await heard.tells("before")


async def test_a_broker_that_goes_away_meanwhile_keeps_nobody_waiting(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await heard.cancel("before", 1_000_000)
    tail = heard.log.tail

    async def last(positions: Mapping[Partition, int]) -> Tail:
        found = await tail(positions)
        heard.log.stop()
        return found

    async with heard.listening():
        monkeypatch.setattr(heard.log, "tail", last)
        with pytest.raises(LogError):
            async with asyncio.timeout(5):
                await heard.tail.cover(1_000_000)


async def test_a_control_that_was_recreated_has_nothing_to_be_looked_up(heard: Heard) -> None:
    """Its offsets begin anew: what was the end before is never reached."""
    for number in range(5):
        await heard.cancel(f"lost {number}", 1_000_000)
    async with heard.listening():
        heard.log.delete(CONTROL)
        await heard.log.create(catalogue("default", TopicSettings()))
        await heard.cancel("new", 1_001_000)
        await heard.tells("new")
        await heard.tail.cover(1_000_000)
        await heard.tells("new")


async def test_nor_if_it_is_recreated_while_it_is_looked_up(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await heard.cancel(f"lost {number}", 1_000_000 + number)
    tail = heard.log.tail
    recreated = asyncio.Event()

    async def slow(positions: Mapping[Partition, int]) -> Tail:
        found = await tail(positions)
        await recreated.wait()
        return found

    async with heard.listening():
        monkeypatch.setattr(heard.log, "tail", slow)
        covering = asyncio.create_task(heard.tail.cover(1_000_103))
        await asyncio.sleep(0.05)
        heard.log.delete(CONTROL)
        await heard.log.create(catalogue("default", TopicSettings()))
        await heard.cancel("new", 1_001_000)
        await heard.tells("new")
        recreated.set()
        with contextlib.suppress(LogError):
            await covering
        monkeypatch.setattr(heard.log, "tail", tail)
        async with asyncio.timeout(5):
            await heard.tail.cover(900_000)
        assert heard.told.count("new") == 1


async def test_the_end_of_control_is_asked_for_until_the_broker_tells(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was recreated, and the broker is away again before it has said where it begins."""
    start_offsets = heard.log.start_offsets
    failed = asyncio.Event()

    async def once(partitions: Sequence[Partition]) -> dict[Partition, int]:
        if not failed.is_set():
            failed.set()
            raise LogError("the broker is away")
        return await start_offsets(partitions)

    monkeypatch.setattr(cancels, "RETRY_SECONDS_MAX", 0.01)
    monkeypatch.setattr(heard.log, "start_offsets", once)
    for number in range(5):
        await heard.cancel(f"lost {number}", 1_000_000)
    async with heard.listening():
        heard.log.delete(CONTROL)
        await heard.log.create(catalogue("default", TopicSettings()))
        await heard.cancel("new", 1_001_000)
        await heard.tells("new")
    assert failed.is_set()


class Deaf:
    """A reader of what nobody can read: nothing comes, and it does not move on."""

    def __init__(self, positions: Mapping[Partition, int]) -> None:
        self.position = positions.__getitem__
        self.reads_count = 0

    async def read(self, **_: object) -> list[Record]:
        self.reads_count += 1
        await asyncio.sleep(0)
        return []

    async def close(self) -> None:
        pass


async def test_what_cannot_be_read_fails_and_holds_no_takeover_up(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await heard.cancel("damaged", 1_000_000)
    await heard.cancel("whole", 1_005_000)
    tail, deaf = heard.log.tail, list[Deaf]()

    async def damaged(positions: Mapping[Partition, int]) -> Tail:
        if positions[HERE] > 0:
            return await tail(positions)
        deaf.append(Deaf(positions))
        return cast("Tail", deaf[-1])

    async with heard.listening():
        monkeypatch.setattr(heard.log, "tail", damaged)
        heard.tail.look_back(1_000_000)
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await heard.tail.cover(1_005_000)
            assert heard.told == ["whole"]
            while len(deaf) < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(LogError, match="cannot be read at 0"):
                await heard.tail.cover(1_000_000)
    assert deaf[0].reads_count == EMPTY_READS_MAX
