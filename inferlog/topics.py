"""`inferlog topics create|check`: the table of topics against a cluster."""

import asyncio
import json

from core.limits import Limits
from inferlog.problems import CommandFailed
from inferlog.settings import TopicCounts, TopicsCommand
from runtime.service import EXIT_FAILED, EXIT_OK
from topics.catalogue import TopicSettings, catalogue, differences
from topics.ports import Log, LogError
from topics.settings import ClusterSettings


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
        claim_life_ms=int(1000 * limits.claim_life_seconds),
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


async def topic_differences(log: Log, pool: str, settings: TopicSettings) -> list[str]:
    """How the cluster differs from the table, a sentence each. Raises CommandFailed."""
    wanted = catalogue(pool, settings)
    try:
        actual = await log.describe([spec.name for spec in wanted])
    except LogError as error:
        raise CommandFailed(f"the topics could not be read: {error}") from None
    return differences(wanted, actual, settings)


def create(command: TopicsCommand) -> int:
    """Creates what is missing."""
    created = asyncio.run(_with_log(command.cluster, command, create_topics))
    if command.json:
        print(json.dumps({"created": created}))
    else:
        print(f"created: {', '.join(created)}" if created else "all topics are there already")
    return EXIT_OK


def check(command: TopicsCommand) -> int:
    """Prints the differences; 1 if there are any."""
    found = asyncio.run(_with_log(command.cluster, command, topic_differences))
    if command.json:
        print(json.dumps({"ok": not found, "differences": found}))
    else:
        print("\n".join(found) if found else "all topics are as they should be")
    return EXIT_FAILED if found else EXIT_OK


async def _with_log(cluster: ClusterSettings, command: TopicsCommand, act: object) -> list[str]:
    log = cluster.open("inferlog-topics")
    try:
        settings = topic_settings(command.topics, command.limits)
        found: list[str] = await act(log, command.pool, settings)  # type: ignore[operator]
        return found
    finally:
        await log.close()
