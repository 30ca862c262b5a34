"""One run: the real workers and replicas on the modelled log, clients, troubles, then peace.

`run(seed)` builds everything from the seed, lets troubles happen for a while, heals the world, waits
until all has come to rest, and returns the history for the checker with a checksum of all that ran.
"""

import asyncio
import contextlib
import random
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

from consumers.inference.engine.scripted import ScriptedEngine, ScriptedOptions
from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.errors import InferlogError
from runtime.metrics import Metrics
from tests.checker.history import Fault, History, Trim
from tests.checker.rules import Violation, judge
from tests.checker.topics_read import read_topics
from tests.simulation.branches import counting
from tests.simulation.client import Client
from tests.simulation.cluster import CALM, Cluster
from tests.simulation.connection import SimLog, qs_of
from tests.simulation.directed import Direct
from tests.simulation.groups import Group
from tests.simulation.loop import EPOCH_MS, PROCESS, START_S, Process, SimLoop
from tests.simulation.plan import WorldPlan, make_plan
from tests.simulation.producer import Producer
from tests.simulation.replica import Replica
from tests.simulation.trace import Trace, silence, tracing
from topics.catalogue import REPLIES, TopicSettings, catalogue, request_topic

QUIET_WITHIN_S = 60.0
"""How long after the last trouble everything must have come to rest (I10)."""

METRICS = Metrics()
"""Shared by all runs: making one costs more than a short run, and its counters say what happened."""


@dataclass(slots=True)
class Outcome:
    """What a run gives."""

    seed: int
    digest: int
    requests: int
    handles: int
    virtual_s: float
    violations: list[Violation]
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


def _as_settings(options: ScriptedOptions) -> tuple[str, ...]:
    """What an engine in the place of a dead one is made of."""
    return (
        f"tokens_per_second={options.tokens_per_second}",
        f"ttft_ms={options.ttft_ms}",
        f"slots={options.slots}",
        *(f"fail={it}" for it in options.fail),
    )


class WorkerProcess:
    """One start of one worker."""

    def __init__(self, world: "World", name: str, serial: int) -> None:
        self.name = name
        self.process: Process = world.loop.process(f"{name}.{serial}")
        self.process.wall_offset_ms = world.offset_ms()
        self.service: InferenceService | None = None
        self.ended = False

    @property
    def running(self) -> bool:
        return self.service is not None and not self.ended and not self.process.killed


class World:
    """Everything there is in one run."""

    def __init__(self, plan: WorldPlan) -> None:
        self.plan = plan
        self.loop = SimLoop(plan.seed)
        self.random = random.Random(f"{plan.seed}/world")
        self.cluster = Cluster(self.loop, plan.seed)
        self.counts = self.cluster.counts
        self.groups: dict[str, Group] = {}
        self.history = History(
            clock_error_ms=max(map(abs, plan.offsets_ms)),
            total_seconds=plan.limits.total_seconds,
            claim_life_seconds=plan.limits.claim_life_seconds,
            span_offsets=plan.limits.span_offsets,
            poison=(plan.poison,) if plan.poison else (),
            trimmed=plan.trims,
        )
        self.history.stored, self.history.commits = self.cluster.archive, self.cluster.commits
        self.workers: dict[str, WorkerProcess] = {}
        self.replicas: dict[int, Replica] = {}
        self.clients: list[Client] = []
        self.peaceful = False
        self.trace: Trace | None = None
        self._starts = 0

    def offset_ms(self) -> int:
        """How wrong the wall clock of the next process is."""
        offsets = self.plan.offsets_ms
        self._starts += 1
        return offsets[self._starts % len(offsets)]

    # --- processes

    def start_worker(self, name: str) -> WorkerProcess:
        """A new process under an old name."""
        self._starts += 1
        it = self.workers[name] = WorkerProcess(self, name, self._starts)
        self.loop.spawn(it.process, self._work(it), it.name)
        return it

    async def _work(self, it: WorkerProcess) -> None:
        plan = self.plan
        options = ScriptedOptions(
            tokens_per_second=plan.tokens_per_second,
            ttft_ms=plan.ttft_ms,
            slots=plan.slots,
            fail=(f"die_on:{plan.poison}",) if plan.poison else (),
        )
        settings = WorkerSettings(
            tiers=plan.tiers,
            engine="scripted",
            engine_option=_as_settings(options),
            worker_id=it.name,
            session_timeout_seconds=plan.session_s,
            drain_seconds=0.5,
            limits=plan.limits,
        )
        log = SimLog(self.cluster, self.groups, it.process)
        engine = ScriptedEngine("scripted", options)
        if plan.seed % 2:
            engine.resumes = frozenset()  # one that cannot go on under penalties: `interrupted`
        it.service = InferenceService(settings, log, engine, METRICS)
        try:
            await it.service.start()
            await it.service.failed
        except InferlogError as error:
            self.counts[f"worker ended: {type(error).__name__}"] += 1
        except Exception as error:  # noqa: BLE001  a loop that fell over a fault of ours
            self.surprise(f"{it.process.name} ended with {error!r}")
        await self._stop_worker(it)

    async def _stop_worker(self, it: WorkerProcess) -> None:
        assert it.service is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15.0):
                await it.service.stop()
        it.ended = True
        self.loop.kill(it.process)
        self.restart_later(it.name)

    def retire_worker(self, it: WorkerProcess) -> None:
        """A rolling restart: SIGTERM."""
        self.loop.spawn(it.process, self._stop_worker(it), "retire")

    def kill_worker(self, it: WorkerProcess) -> None:
        """SIGKILL, and a supervisor that starts it anew."""
        self.loop.kill(it.process)
        self.restart_later(it.name)

    def restart_later(self, name: str) -> None:
        """After a while; the others have the work until then."""
        delay_s = self.random.choice([0.05, 0.5, 2.0])
        self.loop.call_for(self.loop.world, delay_s, self._restart, name)

    def _restart(self, name: str) -> None:
        it = self.workers[name]
        if it.ended or it.process.killed:
            self.start_worker(name)

    def start_replica(self, index: int) -> None:
        """A new process of the API."""
        self._starts += 1
        it = Replica(self.loop, f"api-{index}.{self._starts}", self.random, self.surprise)
        it.process.wall_offset_ms = self.offset_ms()
        self.replicas[index] = it
        self.loop.spawn(it.process, self._serve(it, index), it.name)

    async def _serve(self, it: Replica, index: int) -> None:
        log = SimLog(self.cluster, self.groups, it.process)
        error = await it.live(log, self.plan.limits, METRICS, index, self.plan.replicas)
        if not isinstance(error, InferlogError | TimeoutError):
            self.surprise(f"{it.name} ended with {error!r}")
        self.counts[f"replica ended: {type(error).__name__}"] += 1
        it.dies()

    def surprise(self, text: str) -> None:
        """An exception where only documented failures may be."""
        self.history.broken.append(text)

    def replica_choice(self) -> list[Replica]:
        """Where a client may connect to: a load balancer that has noticed what is dead."""
        ready = [it for it in self.replicas.values() if it.ready and not it.process.killed]
        return ready or list(self.replicas.values())

    async def _retention(self) -> None:
        """Takes what is older than the topics' retention, as brokers do now and then."""
        limits = self.plan.limits
        keeps_s = {
            "replies": limits.reply_retention_seconds,
            "fences": 3 * limits.reply_retention_seconds,
        }
        while not self.peaceful:
            await asyncio.sleep(1.0)
            for name, kept_s in keeps_s.items():
                for partition in qs_of(self.cluster, [name]):
                    start = self.cluster.trim(partition, self.cluster.now_ms() - int(kept_s * 1000))
                    if name == REPLIES and start:
                        it = Trim(self.cluster.now_ms(), partition.index, start)
                        self.history.trims.append(it)

    async def _audit(self) -> None:
        """Readers that start late, on any replica, and another tenant who must learn nothing."""
        for client in self.random.sample(self.clients, min(3, len(self.clients))):
            if client.request_id is not None:
                await client.look_back()
                await client.pry("bob" if client.plan.draft.tenant == "ann" else "ann")

    async def _supervise(self) -> None:
        """Starts replicas anew that are gone."""
        while True:
            await asyncio.sleep(0.3)
            for index, it in list(self.replicas.items()):
                if it.process.killed:
                    self.start_replica(index)

    # --- the run

    async def live(self) -> None:
        """From the first process to rest."""
        from tests.simulation.troubles import make_trouble  # noqa: PLC0415  (it needs this module)

        plan, loop = self.plan, self.loop
        for number in range(plan.workers):
            self.start_worker(f"worker-{number}")
        for index in range(plan.replicas):
            self.start_replica(index)
        loop.spawn(loop.world, self._supervise())
        if plan.trims:
            loop.spawn(loop.world, self._retention())
        await self._until(self._all_ready, 30.0, "the world did not come up")
        lives = []
        for client_plan in plan.clients:
            client = Client(
                loop,
                self.random,
                client_plan,
                self.history,
                self.replica_choice,
                self.cluster.now_ms,
                self.counts,
            )
            self.clients.append(client)
            lives.append(loop.spawn(client.process, client.live(), client_plan.name))
        for batch in plan.batches:
            process = loop.process(f"producer-{batch.number}")
            log = SimLog(self.cluster, self.groups, process)
            producer = Producer(self.cluster, log, self.random, batch, self.counts)
            lives.append(loop.spawn(process, producer.live(), process.name))
        begun_s = loop.time()
        for trouble in plan.troubles:
            await asyncio.sleep(max(0.0, begun_s + trouble.at_s - loop.time()))
            make_trouble(self, trouble)
        await asyncio.sleep(max(0.0, begun_s + plan.chaos_s - loop.time()))
        self._heal()
        await self._until(
            lambda: all(it.done() for it in lives) and self._at_rest(),
            QUIET_WITHIN_S + 3 * plan.limits.total_seconds,
            "not at rest",
        )
        for life in lives:
            if life.done() and not life.cancelled() and life.exception() is not None:
                self.history.broken.append(f"{life.get_name()} raised {life.exception()!r}")
        audit = loop.spawn(loop.process("auditor"), self._audit())
        await self._until(audit.done, 30.0, "an audit did not end")
        # what a sender had given up may have landed since
        await self._until(self._at_rest, QUIET_WITHIN_S, "not at rest after the audit")

    def _heal(self) -> None:
        self.peaceful = True
        self.cluster.weather = CALM
        self.cluster.deaf.clear()
        if self.cluster.away:
            self.cluster.start()
        for process in self.loop.processes:
            if process.paused:
                self.loop.wake(process)

    def _all_ready(self) -> bool:
        owned = [
            q
            for it in self.workers.values()
            if it.running and it.service is not None
            for tier in it.service._tiers
            for q in tier.owned
        ]
        everything = self.plan.request_partitions * len(self.plan.tiers)
        return len(owned) == everything and all(it.ready for it in self.replicas.values())

    def _at_rest(self) -> bool:
        """Everything on the request topics is committed, and no slot is taken."""
        topics = [request_topic("default", tier) for tier in self.plan.tiers]
        for q in qs_of(self.cluster, topics):
            group = self.groups.get(f"inferlog.{q.topic}")
            committed = group.committed.get(q) if group else None
            end = self.cluster.memory._topic(q.topic).end(q.index)
            if (committed.offset if committed else 0) < end:
                return False
        return self._slots_are_free()

    def _slots_are_free(self) -> bool:
        """I8: nothing runs on for nobody."""
        for it in self.workers.values():
            if it.running and it.service is not None and it.service.worker is not None:
                scheduler = it.service.worker.scheduler
                if scheduler.running or scheduler.waiting():
                    return False
        return True

    async def _until(self, holds: Callable[[], bool], limit_s: float, otherwise: str) -> None:
        until_s = self.loop.time() + limit_s
        while not holds():
            if self.loop.time() > until_s:
                self.history.broken.append(f"{otherwise} within {limit_s:.0f} s")
                return
            await asyncio.sleep(0.25)

    def trouble_lasts(self, kind: str, seconds: float) -> None:
        """For the checker: times are told only of what was well."""
        now_ms = self.cluster.now_ms()
        self.history.faults.append(Fault(kind, now_ms, now_ms + int(seconds * 1000)))


@contextlib.contextmanager
def _virtual(world: World) -> Iterator[None]:
    """Clocks and chance of the product come from the world while it runs."""
    loop, chance = world.loop, random.Random(f"{world.plan.seed}/secrets")

    def wall_s() -> float:
        offset_ms = PROCESS.get(loop.world).wall_offset_ms
        return (EPOCH_MS + offset_ms) / 1000 + loop.time() - START_S

    monotonic = types.SimpleNamespace(monotonic=loop.time)
    with (
        patch("consumers.inference.commits.time", monotonic),
        patch("consumers.inference.failover.time", monotonic),
        patch("consumers.inference.tier.time", monotonic),
        patch("runtime.clock.time", types.SimpleNamespace(time=wall_s, monotonic=loop.time)),
        patch("secrets.token_hex", lambda _=None: f"{chance.getrandbits(64):016x}"),
        patch("secrets.randbits", chance.getrandbits),
    ):
        yield


def run(
    seed: int, *, size: float = 1.0, traced: bool = False, direct: Direct | None = None
) -> Outcome:
    """One seed, from nothing to its verdict; `traced`: with all that was said and stored."""
    plan = make_plan(seed, size)
    if direct is not None:
        direct(plan)
    world = World(plan)
    loop = world.loop
    with tracing(loop) if traced else silence() as trace:
        world.trace = trace
        outcome = _run(world)
        if trace is not None:
            outcome.lines = trace.lines(world.history)
        return outcome


def _run(world: World) -> Outcome:
    plan, loop = world.plan, world.loop
    settings = TopicSettings(
        request_partitions=plan.request_partitions,
        reply_partitions=plan.reply_partitions,
        claim_partitions=2,
        usage_partitions=1,
    )
    try:
        with _virtual(world), counting(world.counts):
            world.cluster.create(catalogue("default", settings))
            loop.run_until_complete(world.live())
            virtual_s, digest = loop.time() - START_S, loop.digest
            read = read_topics(world.history)
            violations = judge(world.history, read)
            world.counts["zombie spoke behind a fence"] += read.replies.hidden
            world.counts["copy spoke unseen"] += read.replies.elsewhere
            world.history.stored = list(world.cluster.archive)
            unhandled = list(loop.unhandled)
            loop.take_down()
    except BaseException:
        loop.take_down()
        raise
    violations += [Violation("I12", f"nobody handled: {text}") for text in unhandled]
    requests = sum(1 for it in world.history.stored if it.record.topic.startswith("requests."))
    return Outcome(
        plan.seed,
        digest,
        requests,
        loop.handles_run,
        virtual_s,
        violations,
        world.counts,
    )
