"""Which models there are, and whether a live worker serves them: the tail of `workers`."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from core.errors import Refusal
from core.limits import Limits
from runtime.clock import BrokerClock
from schemas.codec import UndecodableRecord, decode_worker
from schemas.operations import WorkerState
from topics.catalogue import WORKERS
from topics.ports import Log, LogError, OffsetOutOfRange, Partition, Tail

HERE = Partition(WORKERS, 0)

CATCH_UP_SECONDS = 15.0
QUIET_SECONDS = 1.5
RETRY_SECONDS = 1.0
LATE_MS = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as it was last announced; `since_ms` is the broker's time of that."""

    name: str
    context_tokens: int
    state: str
    pool: str
    since_ms: float


class WorkerDirectory:
    """Keeps the last state of every worker, and of every model ever announced."""

    def __init__(self, log: Log, clock: BrokerClock, limits: Limits) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits
        self._workers: dict[str, tuple[int, WorkerState]] = {}
        self._models: dict[str, ModelEntry] = {}
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> "asyncio.Task[None]":
        """Reads all there is, then follows; returns the loop."""
        start = (await self._log.start_offsets([HERE]))[HERE]
        end = (await self._log.end_offsets([HERE]))[HERE]
        self._tail = await self._log.tail({HERE: start})
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CATCH_UP_SECONDS
        while self._tail.position(HERE) < end and loop.time() < until_s:
            if not await self._read(QUIET_SECONDS) and self._tail.position(HERE) > start:
                break  # compaction may have taken the last ones: there is nothing to wait for
        self._task = asyncio.create_task(self._run(), name="worker-directory")
        return self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._read(1.0)
            except OffsetOutOfRange:
                await self._begin_anew()

    async def _begin_anew(self) -> None:
        assert self._tail is not None
        while True:
            try:
                start = (await self._log.start_offsets([HERE]))[HERE]
            except LogError as error:
                _log.warning("nobody says where workers begins: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._tail.assign({HERE: start})
                return

    async def _read(self, wait_seconds: float) -> bool:
        assert self._tail is not None
        began_ms = self._clock.wall_ms()
        told = await self._will_tell_the_time()
        records = await self._tail.read(max_wait_seconds=wait_seconds)
        if records and told and not self._clock.observed:
            self._correct_clock(records[-1].time_ms, began_ms)
        for record in records:
            name = (record.key or b"").decode(errors="replace")
            if record.value is None:
                self._workers.pop(name, None)
                continue
            try:
                state = decode_worker(record.value)
            except UndecodableRecord as error:
                _log.error("undecodable record on workers at %s: %s", record.offset, error)
                continue
            self._workers[name] = (record.time_ms, state)
            for model in state.models:
                self._models[model.name] = ModelEntry(
                    model.name, model.context_tokens, model.state, state.pool, record.time_ms
                )
        return bool(records)

    async def _will_tell_the_time(self) -> bool:
        """Whether what is read next is appended from now on: what was there already says nothing of now."""
        assert self._tail is not None
        if self._clock.observed:
            return False
        try:
            return self._tail.position(HERE) >= (await self._log.end_offsets([HERE]))[HERE]
        except LogError:
            return False

    def _correct_clock(self, appended_ms: int, began_ms: int) -> None:
        """Until the first ack tells better: what comes in now was appended a moment ago.

        So one of the clocks is wrong if it says otherwise, and it is the broker's that counts. What
        lies in our future says so for certain. What seems old is no reason while clocks may differ so
        much, or where this process has slept: then it is the record that is old.
        """
        now_ms = self._clock.wall_ms()
        skew_ms = self._limits.clock_skew_seconds * 1000
        ahead = appended_ms < now_ms - LATE_MS - skew_ms and now_ms - began_ms < LATE_MS
        if ahead or appended_ms > now_ms:
            self._clock.observe(appended_ms, now_ms - LATE_MS, now_ms)

    def models(self) -> list[ModelEntry]:
        """Every model that was ever announced and is still on the log, by name."""
        return sorted(self._models.values(), key=lambda it: it.name)

    def check(self, name: str) -> ModelEntry:
        """The entry of a model. Raises Refusal `model_not_found` or `no_worker`."""
        entry = self._models.get(name)
        if entry is None:
            known = ", ".join(it.name for it in self.models()) or "none yet: is a worker running?"
            raise Refusal(
                "model_not_found",
                f"No worker has ever announced this model. Known models: {known}",
                param="model",
            )
        silent_s = (self._clock.now_ms() - entry.since_ms) / 1000
        if silent_s > self._limits.no_worker_seconds:
            raise Refusal(
                "no_worker",
                f"No live worker has served this model for {int(silent_s)} s.",
                param="model",
                retry_after_seconds=5,
            )
        return entry

    async def close(self) -> None:
        """Ends the tail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._tail is not None:
            await self._tail.close()
            self._tail = None
