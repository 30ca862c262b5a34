"""Readers of one tenant wait for each other; nothing is kept of a tenant that reads nothing."""

import asyncio

import pytest

from producer_api.scan_places import ScanPlaces
from runtime.metrics import Metrics


class Crowd:
    """Counts who is inside, and how many ever were."""

    def __init__(self, places: ScanPlaces) -> None:
        self.places = places
        self.inside = 0
        self.most = 0

    async def read(self, tenant: str) -> None:
        async with self.places.place(tenant) as free:
            assert free
            self.inside += 1
            self.most = max(self.most, self.inside)
            await asyncio.sleep(0.001)
            self.inside -= 1


def places(per_tenant: int = 2) -> ScanPlaces:
    return ScanPlaces(per_tenant, Metrics().log_scans_running)


async def test_no_more_than_the_limit_are_inside_and_all_get_their_turn() -> None:
    crowd = Crowd(places())
    await asyncio.gather(*(crowd.read("a") for _ in range(20)))
    assert crowd.most == 2


async def test_tenants_do_not_wait_for_each_other() -> None:
    crowd = Crowd(places(1))
    await asyncio.gather(*(crowd.read(f"t{index}") for index in range(5)))
    assert crowd.most == 5


async def test_who_waited_in_vain_is_told_so_and_takes_no_place() -> None:
    it = places(1)
    async with it.place("a"), it.place("a", 0.01) as free:
        assert not free
    async with it.place("a", 0.0) as free:
        assert free


async def test_a_tenant_is_forgotten_with_its_last_reader_however_it_ends() -> None:
    it = places(1)
    for index in range(1000):
        async with it.place(f"t{index}"):
            assert len(it) == 1
    with pytest.raises(RuntimeError):
        async with it.place("a"):
            raise RuntimeError
    async with it.place("a"):
        waiting = asyncio.create_task(Crowd(it).read("a"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert len(it) == 0
