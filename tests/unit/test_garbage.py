"""The collector of cycles looks at what is new, and seldom at what has stayed."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from runtime import garbage


class Knot:
    def __init__(self) -> None:
        self.itself: Knot | None = self


@pytest.fixture
async def looking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(garbage, "LOOK_SECONDS", 0.01)
    before = gc.get_threshold()
    task = asyncio.create_task(garbage.look_now_and_then())
    await asyncio.sleep(0.05)
    yield
    task.cancel()
    await asyncio.wait([task])
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


async def until_gone(knot: "weakref.ref[Knot]") -> None:
    async with asyncio.timeout(10):
        while knot() is not None:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("looking")
async def test_a_new_cycle_is_found_soon() -> None:
    await until_gone(weakref.ref(Knot()))


@pytest.mark.usefixtures("looking")
async def test_a_new_cycle_is_found_among_many_before_the_next_look() -> None:
    knot = weakref.ref(Knot())
    more: list[list[int]] = [[] for _ in range(2 * garbage.YOUNG_CONTAINERS)]
    assert (knot(), len(more)) == (None, 2 * garbage.YOUNG_CONTAINERS)


@pytest.mark.usefixtures("looking")
async def test_what_has_stayed_is_not_walked_again_and_freed_as_soon_as_nobody_needs_it() -> None:
    kept = [Knot() for _ in range(1_000)]
    await asyncio.sleep(0.1)
    young = {id(it) for generation in (0, 1, 2) for it in gc.get_objects(generation)}
    assert not any(id(it) in young for it in kept)
    first = weakref.ref(kept[0])
    kept[0].itself = None
    del kept[0]
    assert first() is None


@pytest.mark.parametrize("reason", ["time", "memory"])
async def test_a_cycle_of_what_has_stayed_is_found_at_the_full_look(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    resident = 100
    monkeypatch.setattr(garbage, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "FULL_SECONDS", 0.3 if reason == "time" else 3600.0)
    monkeypatch.setattr(garbage, "GROWN_BYTES", 10)
    monkeypatch.setattr(garbage, "resident_bytes", lambda: resident)
    task = asyncio.create_task(garbage.look_now_and_then())
    kept: list[Knot] = [Knot()]
    await asyncio.sleep(0.1)
    knot = weakref.ref(kept.pop())
    resident = 199
    await asyncio.sleep(0.05)
    assert knot() is not None
    resident = 200 if reason == "memory" else resident
    await until_gone(knot)
    task.cancel()
    await asyncio.wait([task])


def test_memory_is_told_in_bytes() -> None:
    least = garbage.resident_bytes()
    more = b"x" * 50_000_000
    assert garbage.resident_bytes() - least >= len(more) * 0.9
