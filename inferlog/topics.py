"""`inferlog topics create|check`: the table of topics against a cluster."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from core.idempotency import claim_life_seconds
from core.limits import Limits
from inferlog.client_settings import TopicsCommand
from inferlog.log_reading import cluster_of, whereabouts
from inferlog.problems import CommandFailed
from inferlog.settings import TopicCounts
from runtime.service import EXIT_FAILED, EXIT_OK
from topics.catalogue import CLAIMS, TopicSettings, catalogue, differences
from topics.ports import Log, LogError

T = TypeVar("T")
Act = Callable[[Log, str, TopicSettings], Awaitable[T]]


def topic_settings(counts: TopicCounts, limits: Limits) -> TopicSettings:
    """Counts as they were set; retentions as the limits demand."""
    longest_seconds = max(limits.total_seconds, limits.batch_total_seconds)
    day_seconds = 24 * 3600.0
    return TopicSettings(
        request_partitions=counts.request_partitions,
        reply_partitions=counts.reply_partitions,
        claim_partitions=counts.claim_partitions,
        usage_partitions=counts.usage_partitions,
        replication=counts.replication,
        min_insync=counts.min_insync,
        request_retention_ms=int(1000 * (longest_seconds + day_seconds)),
        reply_retention_ms=int(1000 * limits.reply_retention_seconds),
        claim_life_ms=int(1000 * claim_life_seconds(limits)),
        longest_deadline_ms=int(1000 * longest_seconds),
    )


async def create_topics(log: Log, pool: str, settings: TopicSettings) -> list[str]:
    """Creates what is missing; returns the names. Raises CommandFailed."""
    try:
        return await log.create(catalogue(pool, settings))
    except LogError as error:
        raise CommandFailed(
            f"the topics could not be made: {error}. Is the cluster running, and may this user "
            "create topics there?"
        ) from None


async def grow_topics(log: Log, pool: str, settings: TopicSettings) -> list[str]:
    """Adds the partitions that are wanted and missing; returns the topics. Raises CommandFailed.

    Never to `claims`: its keys would move, and a key that was taken would be free.
    """
    wanted = {it.name: it.partitions for it in catalogue(pool, settings) if it.name != CLAIMS}
    try:
        return await log.grow(wanted)
    except LogError as error:
        raise CommandFailed(
            f"partitions could not be added: {error}. May this user alter topics there?"
        ) from None


async def topic_differences(log: Log, pool: str, settings: TopicSettings) -> list[str]:
    """How the cluster differs from the table, a sentence each. Raises CommandFailed."""
    wanted = catalogue(pool, settings)
    try:
        actual = await log.describe([spec.name for spec in wanted])
    except LogError as error:
        raise CommandFailed(f"the topics could not be read: {error}.") from None
    return differences(wanted, actual, settings)


async def _create_all(
    log: Log, pool: str, settings: TopicSettings
) -> tuple[list[str], list[str], list[str]]:
    created = await create_topics(log, pool, settings)
    grown = await grow_topics(log, pool, settings)
    found = await topic_differences(log, pool, settings)
    return created, grown, [line for line in found if line.startswith(f"{CLAIMS}: has")]


def create(command: TopicsCommand) -> int:
    """Creates what is missing, adds partitions where more are wanted; 1 if `claims` stands against it."""
    created, grown, refused = asyncio.run(_with_log(command, _create_all))
    if command.json:
        print(json.dumps({"created": created, "grown": grown, "refused": refused}))
    else:
        done = [
            *([f"created: {', '.join(created)}"] if created else []),
            *([f"partitions added to: {', '.join(grown)}"] if grown else []),
        ]
        print("\n".join([*(done or ["all topics are there already"]), *refused]))
    return EXIT_FAILED if refused else EXIT_OK


def check(command: TopicsCommand) -> int:
    """Prints the differences; 1 if there are any."""
    found = asyncio.run(_with_log(command, topic_differences))
    if command.json:
        print(json.dumps({"ok": not found, "differences": found}))
    else:
        print("\n".join(found) if found else "all topics are as they should be")
    return EXIT_FAILED if found else EXIT_OK


async def _with_log(command: TopicsCommand, act: Act[T]) -> T:
    log = cluster_of(command.reading).open("inferlog-topics")
    try:
        settings = topic_settings(command.topics, command.limits)
        return await act(log, command.pool, settings)
    except CommandFailed as error:
        raise CommandFailed(f"{error} {whereabouts(command.reading)}") from None
    finally:
        await log.close()
