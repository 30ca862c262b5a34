"""What only a member of a real group can suffer: clients that die, commits of yesterday's owners."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiokafka.protocol.commit import OffsetCommitRequest

from topics.kafka import KafkaLog
from topics.ports import CommitRefused, Committed, Member, Partition

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

Told = list[tuple[str, frozenset[Partition]]]
JoinGroup = Callable[[], Awaitable[tuple[Any, Told]]]
ReadUntil = Callable[[Member, Callable[[], bool]], Coroutine[None, None, None]]


async def test_a_member_replaces_a_client_that_died(
    faulty_log: KafkaLog, faulty_topic: str, join_group: JoinGroup, read_until: ReadUntil
) -> None:
    member, told = await join_group()
    everything = member.assignment()
    first_id = member.member_id
    member.consumer._coordinator._coordination_task.cancel()
    member.consumer._fetcher._fetch_task.cancel()
    await read_until(member, lambda: len(told) == 3)
    assert [it for it, _ in told] == ["assigned", "revoked", "assigned"]
    assert told[1] == ("revoked", everything)
    assert (member.rebuilds, faulty_log.rebuilds) == (1, {("member", "died"): 1})
    assert member.member_id not in {"", first_id}
    await read_until(member, lambda: member.assignment() == everything)
    await member.close()


async def test_a_commit_that_is_open_at_a_rebalance_is_ended_first(
    faulty_log: KafkaLog, faulty_topic: str, join_group: JoinGroup, read_until: ReadUntil
) -> None:
    one, told = await join_group()
    held = one.assignment()
    coordinator = one.consumer._coordinator
    send = coordinator._send_req
    ended = asyncio.Event()

    async def hang(request: Any) -> Any:
        if not isinstance(request, OffsetCommitRequest):
            return await send(request)
        try:
            return await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)
            assert told[-1][0] == "assigned", "the hook ran while the commit was under way"
            ended.set()

    coordinator._send_req = hang
    commit = asyncio.create_task(one.commit({q: Committed(1, "open") for q in held}))
    await asyncio.sleep(0.1)
    polling = asyncio.create_task(read_until(one, lambda: len(told) == 3))
    two, _ = await join_group()
    await asyncio.gather(polling, read_until(two, lambda: len(two.assignment()) == 1))
    with pytest.raises(CommitRefused):
        await commit
    assert ended.is_set()
    assert await faulty_log.committed(f"group-{faulty_topic}", sorted(held)) == {}
    await asyncio.gather(one.close(), two.close())


async def test_the_broker_itself_refuses_a_commit_of_a_replaced_generation(
    faulty_log: KafkaLog, faulty_topic: str, join_group: JoinGroup, read_until: ReadUntil
) -> None:
    one, told = await join_group()
    held = one.assignment()
    before = one.consumer._coordinator.generation
    polling = asyncio.create_task(read_until(one, lambda: len(told) == 3))
    two, _ = await join_group()
    await asyncio.gather(polling, read_until(two, lambda: len(two.assignment()) == 1))
    # as a process that slept through the rebalance and believes in its old generation
    one.consumer._coordinator.generation = before
    one._held, one._identity = held, (before, one.member_id)
    with pytest.raises(CommitRefused):
        await one.commit({q: Committed(1, "zombie") for q in held})
    assert await faulty_log.committed(f"group-{faulty_topic}", sorted(held)) == {}
    await asyncio.gather(one.close(), two.close())


async def test_a_member_that_does_not_know_itself_commits_nothing(
    faulty_log: KafkaLog, faulty_topic: str, join_group: JoinGroup, read_until: ReadUntil
) -> None:
    member, _ = await join_group()
    (here, _) = sorted(member.assignment())
    coordinator = member.consumer._coordinator
    # what a failed heartbeat leaves behind, before anybody was told
    coordinator.generation, coordinator.member_id = -1, ""
    with pytest.raises(CommitRefused):
        await member.commit({here: Committed(1, "")})
    await member.close()
