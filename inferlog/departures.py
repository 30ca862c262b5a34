"""Leaving consumer groups for a worker that was killed, so that nobody waits for its session.

The groups themselves say which memberships a dead process held: each member comes with the client id
of its process (see `consumers.inference.identity`). So what is removed is right whenever the process
died, also in the middle of joining, and nothing has to be written down while it lives.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from consumers.inference.identity import client_id
from inferlog.supervisor import Report
from topics.ports import Log, LogError

RETRY_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Departures:
    """One per supervisor. `seconds`: how long it is tried; then the session timeout has done it."""

    def __init__(self, log: Log, groups: Sequence[str], seconds: float, report: Report) -> None:
        self._log = log
        self._groups = tuple(groups)
        self._seconds = seconds
        self._report = report
        self._leaving: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Connects before it matters: a takeover should not wait for a handshake."""
        for group in self._groups:
            await self._log.members(group)

    def of_worker(self, worker_id: str) -> Callable[[int], None]:
        """What a supervisor calls with the process id of each run of this worker that has ended."""
        return lambda pid: self.leave_for(client_id(worker_id, pid))

    def leave_for(self, dead: str) -> None:
        """Removes every membership of a process that has ended; returns at once."""
        task = asyncio.create_task(self._leave(dead), name=f"leave-{dead}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, dead: str) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tried = await asyncio.gather(*(self._leave_one(it, dead) for it in self._groups))
        count = sum(found for found in tried if found is not None)
        took_ms = (loop.time() - began_s) * 1000
        if None in tried:
            self._report(f"some groups could not be left for {dead}: its session must time out")
        elif count:
            self._report(f"left {count} memberships for {dead} in {took_ms:.0f} ms")

    async def _leave_one(self, group: str, dead: str) -> int | None:
        """How many memberships were removed; None if that could not be done in time."""
        removed = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    try:
                        for member in await self._log.members(group):
                            if member.client_id == dead:
                                await self._log.remove_member(group, member.member_id)
                                removed += 1
                        return removed
                    except LogError as error:
                        _log.warning("%s: not left for %s yet: %s", group, dead, error)
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return None

    async def close(self) -> None:
        """Ends what is under way."""
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._log.close()
