"""How many of a tenant's readers may read the log back at once; the others wait their turn.

A scan costs a consumer and whatever the broker sends it. Without a bound one tenant that asks for a
thousand old answers would take all of a replica's time from the others.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from prometheus_client import Gauge

Place = Callable[[float], AbstractAsyncContextManager[bool]]
"""A place for one tenant, if one comes free within the seconds given."""


class _Places:
    def __init__(self, count: int) -> None:
        self.free = asyncio.Semaphore(count)
        self.users = 0


class ScanPlaces:
    """Keeps a tenant only as long as one of its readers holds a place, or waits for one."""

    def __init__(self, per_tenant: int, running: Gauge) -> None:
        self._per_tenant = per_tenant
        self._running = running
        self._tenants: dict[str, _Places] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    @contextlib.asynccontextmanager
    async def place(self, tenant: str, wait_seconds: float | None = None) -> AsyncIterator[bool]:
        """True inside: there is a place. False: none came free within the wait."""
        places = self._tenants.get(tenant)
        if places is None:
            places = self._tenants[tenant] = _Places(self._per_tenant)
        places.users += 1
        try:
            if not await _acquire(places.free, wait_seconds):
                yield False
                return
            self._running.inc()
            try:
                yield True
            finally:
                self._running.dec()
                places.free.release()
        finally:
            places.users -= 1
            if not places.users:
                del self._tenants[tenant]


async def _acquire(free: asyncio.Semaphore, wait_seconds: float | None) -> bool:
    try:
        async with asyncio.timeout(wait_seconds):
            return await free.acquire()
    except TimeoutError:
        return False
