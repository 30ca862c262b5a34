"""A commit of a group member: under the generation it was begun in, or not at all."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    IllegalGenerationError,
    KafkaError,
    NotCoordinatorForGroupError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata

from topics.kafka.clients import describe
from topics.ports import CommitRefused, Committed, LogError, Partition

RETRY_SECONDS = 0.1

# The coordinator certainly did not take the commit: it is not there, not here, or not ready.
_NOT_NOW = (
    GroupCoordinatorNotAvailableError,
    NotCoordinatorForGroupError,
    GroupLoadInProgressError,
)
_GONE = (IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)


async def commit_once(
    offsets: Mapping[Partition, Committed], coordinator_of_ours: Callable[[], Any]
) -> None:
    """Aiokafka's own `commit` tries again, also under a generation that is not ours.

    A coordinator that restarts is waited for: what it refused for that reason, or was never sent,
    is certainly not committed. Whoever calls bounds this in time. `coordinator_of_ours` raises
    CommitRefused if the group has another generation.
    """
    wanted = {
        TopicPartition(*partition): OffsetAndMetadata(at.offset, at.metadata)
        for partition, at in offsets.items()
    }
    while True:
        coordinator = coordinator_of_ours()
        await coordinator.ensure_coordinator_known()
        # No await between this check and the request's making: a heartbeat may forget who we are,
        # and a commit of nobody in particular is accepted by a group without members.
        coordinator_of_ours()
        try:
            await coordinator._do_commit_offsets(None, wanted)  # noqa: SLF001
        except _NOT_NOW:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def tell_outcome(commit: "asyncio.Task[None]") -> None:
    """Raises CommitRefused or LogError if a commit that has ended was not accepted."""
    if commit.cancelled():
        raise CommitRefused("the partitions were revoked meanwhile")
    error = commit.exception()
    if isinstance(error, _GONE):
        raise CommitRefused(describe(error)) from error
    if isinstance(error, KafkaError | OSError):
        raise LogError(f"commit: {describe(error)}") from error
    if error is not None:
        raise error
