"""`inferlog status`: tiers, lag, workers and slots, read from the log alone."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from inferlog.client_settings import StatusCommand
from inferlog.log_reading import open_log, read_span
from inferlog.problems import CommandFailed
from inferlog.terminal import console
from runtime.clock import SystemClock
from runtime.service import EXIT_OK
from schemas.codec import UndecodableRecord, decode_worker
from schemas.operations import WorkerState
from schemas.requests import TIERS, Tier
from topics.catalogue import WORKERS, request_topic
from topics.ports import Log, Partition

if TYPE_CHECKING:
    from rich.console import Group

HEARD_SECONDS_MAX = 10.0
"""Workers say every 2 s how they are; one unheard of for longer is gone."""


@dataclass(frozen=True, slots=True)
class TierStatus:
    """`lag`: requests not completed; `oldest_seconds`: age of the oldest of them."""

    tier: Tier
    partitions: int
    owned: int
    lag: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker said last, and how long ago."""

    worker_id: str
    models: tuple[str, ...]
    state: str
    slots: int
    running: int
    waiting: int
    tokens_per_second: float
    partitions: int
    heard_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """One look."""

    pool: str
    tiers: tuple[TierStatus, ...]
    workers: tuple[WorkerStatus, ...]


async def look(log: Log, pool: str, now_ms: int) -> Status:
    """Reads everything once. Raises LogError."""
    states = [it for it in await _worker_states(log) if it.pool == pool]
    heard = [it for it in states if now_ms - it.time_ms < HEARD_SECONDS_MAX * 1000]
    owned = {q for it in heard for q in it.qs}
    tiers = [await _tier(log, pool, tier, owned, now_ms) for tier in TIERS]
    return Status(pool, tuple(tiers), tuple(_worker(it, now_ms) for it in heard))


async def _worker_states(log: Log) -> list[WorkerState]:
    partition = Partition(WORKERS, 0)
    start = (await log.start_offsets([partition]))[partition]
    end = (await log.end_offsets([partition]))[partition]
    latest: dict[bytes, WorkerState] = {}
    async for record in read_span(log, partition, start, end):
        key = record.key or b""
        if record.value is None:
            latest.pop(key, None)
            continue
        try:
            latest[key] = decode_worker(record.value)
        except UndecodableRecord:
            continue
    return sorted(latest.values(), key=lambda it: it.worker_id)


async def _tier(log: Log, pool: str, tier: Tier, owned: set[str], now_ms: int) -> TierStatus:
    topic = request_topic(pool, tier)
    partitions = [Partition(topic, i) for i in range(await log.partition_count(topic))]
    ends = await log.end_offsets(partitions)
    starts = await log.start_offsets(partitions)
    committed = await log.committed(f"inferlog.{topic}", partitions)
    at = {p: committed[p].offset if p in committed else starts[p] for p in partitions}
    behind = [p for p in partitions if ends[p] > at[p]]
    ages = [age for p in behind if (age := await _age_seconds(log, p, at[p], now_ms)) is not None]
    return TierStatus(
        tier,
        len(partitions),
        sum(1 for p in partitions if str(p) in owned),
        sum(ends[p] - at[p] for p in behind),
        round(max(ages), 1) if ages else None,
    )


async def _age_seconds(log: Log, partition: Partition, offset: int, now_ms: int) -> float | None:
    async for record in read_span(log, partition, offset, offset + 1):
        return max(0.0, (now_ms - record.time_ms) / 1000)
    return None


def _worker(it: WorkerState, now_ms: int) -> WorkerStatus:
    return WorkerStatus(
        it.worker_id,
        tuple(model.name for model in it.models),
        ", ".join(sorted({model.state for model in it.models})) or "no model",
        it.slots,
        it.running,
        it.waiting,
        round(it.tokens_per_second, 1),
        len(it.qs),
        round(max(0.0, (now_ms - it.time_ms) / 1000), 1),
    )


def tables(status: Status) -> "Group":
    """Both tables, for a terminal."""
    from rich.console import Group  # noqa: PLC0415  (only when tables are shown)
    from rich.table import Table  # noqa: PLC0415

    tiers = Table(title=f"pool {status.pool}", title_justify="left")
    for name in ("tier", "lag", "oldest", "partitions owned"):
        tiers.add_column(name, justify="left" if name == "tier" else "right")
    for tier in status.tiers:
        oldest = "-" if tier.oldest_seconds is None else f"{tier.oldest_seconds:.1f} s"
        tiers.add_row(tier.tier, str(tier.lag), oldest, f"{tier.owned} of {tier.partitions}")
    workers = Table(
        title="workers" if status.workers else "no worker is heard", title_justify="left"
    )
    for name in (
        "worker",
        "model",
        "state",
        "running",
        "waiting",
        "tokens/s",
        "owned",
        "heard",
    ):
        # folded, not cut: a name that lost its end says nothing
        workers.add_column(
            name,
            justify="left" if name in {"worker", "model", "state"} else "right",
            overflow="fold",
        )
    for it in status.workers:
        workers.add_row(
            *(it.worker_id, ", ".join(it.models), it.state, f"{it.running} of {it.slots}"),
            *(str(it.waiting), f"{it.tokens_per_second:g}", str(it.partitions)),
            f"{it.heard_seconds:.1f} s",
        )
    return Group(tiers, workers)


async def _run(command: StatusCommand) -> None:
    from rich.live import Live  # noqa: PLC0415  (as above)

    clock = SystemClock()
    async with open_log(command.reading, "inferlog-status") as log:
        status = await look(log, command.pool, clock.wall_ms())
        if command.json:
            print(json.dumps(asdict(status)))
            return
        if not (command.watch and sys.stdout.isatty()):
            console().print(tables(status))
            return
        with Live(tables(status), console=console(), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(command.interval_seconds)
                live.update(tables(await look(log, command.pool, clock.wall_ms())), refresh=True)


def run(command: StatusCommand) -> int:
    """Shows one look, or on a terminal one after the other until Ctrl-C."""
    try:
        asyncio.run(_run(command))
    except KeyboardInterrupt:
        if not command.watch:
            raise CommandFailed("interrupted") from None
    return EXIT_OK
