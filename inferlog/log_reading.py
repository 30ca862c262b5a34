"""Which cluster a command reads, and bounded reads of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from inferlog.client_settings import LogReadingSettings
from inferlog.data_dir import DataDir
from inferlog.problems import CommandFailed
from topics.ports import Log, LogError, Partition, Record
from topics.settings import ClusterSettings

EMPTY_READS_MAX = 10


def cluster_of(settings: LogReadingSettings) -> ClusterSettings:
    """The addresses that were given, else the brokers of the running `inferlog up`."""
    if _named(settings):
        return settings.cluster
    state = DataDir(settings.data_dir).read_state()
    return replace(settings.cluster, bootstrap=state.bootstrap) if state else settings.cluster


def whereabouts(settings: LogReadingSettings) -> str:
    """What to say about the cluster when it does not answer as it should."""
    if _named(settings):
        return "Does it run there? --bootstrap names another."
    data_dir = DataDir(settings.data_dir)
    if (state := data_dir.read_state()) is not None:
        return f"It belongs to the inferlog up of pid {state.pid}; --bootstrap names another."
    return (
        f"No inferlog up runs on {data_dir.path}: start one, or name its folder with --data-dir, "
        "or a cluster with --bootstrap."
    )


def _named(settings: LogReadingSettings) -> bool:
    return settings.cluster.bootstrap != ClusterSettings().bootstrap


@asynccontextmanager
async def open_log(settings: LogReadingSettings, client_id: str) -> AsyncIterator[Log]:
    """The log, closed at the end; LogErrors become CommandFailed."""
    cluster = cluster_of(settings)
    log = cluster.open(client_id)
    try:
        yield log
    except LogError as error:
        raise CommandFailed(
            f"the log at {cluster.bootstrap} cannot be read: {error}. {whereabouts(settings)}"
        ) from None
    finally:
        await log.close()


async def read_span(log: Log, partition: Partition, start: int, end: int) -> AsyncIterator[Record]:
    """The records from `start` up to `end`. Raises LogError when they do not come."""
    if start >= end:
        return
    tail = await log.tail({partition: start})
    try:
        empty = 0
        while tail.position(partition) < end:
            records = await tail.read(max_wait_seconds=0.5)
            empty = 0 if records else empty + 1
            if empty > EMPTY_READS_MAX:
                # a compacted end holds nothing more: what was asked for is read
                return
            for record in records:
                if record.offset >= end:
                    return
                yield record
    finally:
        await tail.close()
