"""What is asked and done about groups and the size of topics, beside the everyday questions."""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest

from topics.kafka.questions import Questions, check
from topics.ports import GroupMember


class _NotGrownYet(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """The broker that was asked does not know the new partitions yet."""

    retriable = True


class Administration(Questions):
    """The questions, and these."""

    async def members(self, group: str) -> list[GroupMember]:
        """Who is in a group, also during a rebalance; nobody if there is no such group."""

        async def ask(admin: AIOKafkaAdminClient) -> list[GroupMember]:
            node = await admin.find_coordinator(group)
            # one group per request: aiokafka reads the answer for several wrongly
            answer = await admin._send_request(DescribeGroupsRequest([group]), node)  # noqa: SLF001
            return members_of(answer)

        return await self._admin(f"asking for members of {group}", ask)

    async def grow(self, counts: Mapping[str, int]) -> list[str]:
        """Adds partitions where a topic has fewer; returns the names once all brokers asked know."""
        small = {
            name: counts[name]
            for name, (partitions, _, _) in (await self._topics(sorted(counts))).items()
            if partitions < counts[name]
        }
        if not small:
            return []
        wanted = {name: NewPartitions(count) for name, count in small.items()}
        timeout_ms = int(self._timeout_seconds * 1000)

        async def ask(admin: AIOKafkaAdminClient) -> None:
            await admin.create_partitions(wanted, timeout_ms)

        async def known(_: AIOKafkaAdminClient) -> None:
            found = await self._topics(sorted(small))
            if any(found[name][0] < count for name, count in small.items() if name in found):
                raise _NotGrownYet("just grown, not known yet")

        await self._admin("adding partitions", ask)
        await self._admin("adding partitions", known)
        for name in small:
            self._counts.pop(name, None)
        return sorted(small)


def members_of(answer: Any) -> list[GroupMember]:
    """Reads a DescribeGroups answer. Raises KafkaError for an error in it."""
    found: list[GroupMember] = []
    for code, group, _state, _type, _protocol, members, *_ in answer.groups:
        check(code, group)
        found += [GroupMember(str(it[0]), str(it[1])) for it in members]
    return found
