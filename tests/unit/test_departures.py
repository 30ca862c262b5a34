"""Leaving groups on behalf of a dead worker: exactly its memberships, tried again, bounded."""

import asyncio

from consumers.inference.identity import client_id, request_group
from inferlog.departures import Departures
from topics.memory import MemoryLog
from topics.ports import GroupMember, LogError

GROUPS = [request_group("p", "premium"), request_group("p", "free")]


class GroupsOnly(MemoryLog):
    """A log of which only groups are asked; `failures`: so many questions go wrong first."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.known = {
            group: [
                GroupMember(f"{group}-{name}", name)
                for name in (client_id("w-0", 7), client_id("w-0", 8), client_id("w-1", 7))
            ]
            for group in GROUPS
        }

    async def members(self, group: str) -> list[GroupMember]:
        if self.failures:
            self.failures -= 1
            raise LogError("away")
        return list(self.known[group])

    async def remove_member(self, group: str, member_id: str) -> None:
        self.known[group] = [it for it in self.known[group] if it.member_id != member_id]

    def left(self) -> set[str]:
        return {it.client_id for members in self.known.values() for it in members}


async def test_only_the_memberships_of_the_dead_process_are_removed() -> None:
    log, said = GroupsOnly(), list[str]()
    departures = Departures(log, GROUPS, 5.0, said.append)
    await departures.connect()
    departures.leave_for(client_id("w-0", 7))
    async with asyncio.timeout(5):
        while not said:
            await asyncio.sleep(0.01)
    assert log.left() == {client_id("w-0", 8), client_id("w-1", 7)}
    assert said[0].startswith("left 2 memberships for w-0.7 in ")
    await departures.close()


async def test_while_the_log_is_away_it_is_tried_again() -> None:
    log, said = GroupsOnly(failures=3), list[str]()
    departures = Departures(log, GROUPS, 5.0, said.append)
    departures.leave_for(client_id("w-1", 7))
    async with asyncio.timeout(5):
        while not said:
            await asyncio.sleep(0.01)
    assert client_id("w-1", 7) not in log.left()
    await departures.close()


async def test_it_is_given_up_when_the_session_has_timed_out_anyway() -> None:
    log, said = GroupsOnly(failures=1000), list[str]()
    departures = Departures(log, GROUPS, 0.3, said.append)
    departures.leave_for(client_id("w-1", 7))
    async with asyncio.timeout(5):
        while not said:
            await asyncio.sleep(0.01)
    assert said == ["some groups could not be left for w-1.7: its session must time out"]
    await departures.close()


async def test_one_that_left_by_itself_is_not_spoken_of() -> None:
    log, said = GroupsOnly(), list[str]()
    departures = Departures(log, GROUPS, 0.3, said.append)
    departures.leave_for(client_id("w-9", 1))
    await asyncio.sleep(0.05)
    await departures.close()
    assert said == []
    assert len(log.left()) == 3
