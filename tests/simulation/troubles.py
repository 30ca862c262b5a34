"""What happens to a world: one function that knows every kind of trouble."""

import asyncio
from typing import TYPE_CHECKING

from schemas.codec import encode
from schemas.fences import Acquired
from schemas.replies import Fence
from tests.simulation.cluster import Cluster, Weather
from tests.simulation.connection import SimLog, qs_of
from tests.simulation.plan import Trouble
from topics.catalogue import FENCES, REPLIES, request_topic
from topics.ports import LogError

if TYPE_CHECKING:
    from tests.simulation.replica import Replica
    from tests.simulation.world import WorkerProcess, World


DELAYS = ("pause worker", "deaf worker", "broker away", "weather")
"""What may keep a worker from hearing of a cancel."""


COUNTED_BY_THE_CLUSTER = ("broker away", "request refused")


def make_trouble(world: "World", trouble: Trouble) -> None:
    """Begins it; what has a length ends by itself."""
    kind, seconds = trouble.kind, trouble.seconds
    if world.trace is not None:
        world.trace.say(f"*** {kind} {seconds:.2f} {trouble.weather or ''}")
    if kind in DELAYS:
        world.trouble_lasts(kind, seconds + 0.5)
    if kind.endswith("worker") or kind == "blink":
        running = [it for it in world.workers.values() if it.running]
        if running:
            world.counts[kind] += 1
            _trouble_worker(world, world.random.choice(running), trouble)
    elif kind.endswith("replica"):
        ready = [it for it in world.replicas.values() if it.ready]
        if ready:
            world.counts[kind] += 1
            _trouble_replica(world, world.random.choice(ready), trouble)
    else:
        if kind not in COUNTED_BY_THE_CLUSTER:
            world.counts[kind] += 1
        _trouble_all(world, trouble)


def _trouble_all(world: "World", trouble: Trouble) -> None:
    loop = world.loop
    match trouble.kind:
        case "kill all workers":
            for it in [it for it in world.workers.values() if it.running]:
                world.kill_worker(it)
        case "broker away":
            world.cluster.stop()
            loop.call_for(loop.world, trouble.seconds, world.cluster.start)
        case "weather":
            assert trouble.weather is not None
            _weather(world.cluster, trouble.weather, trouble.seconds)
        case "storm":
            for number in range(4):
                loop.call_for(loop.world, 0.4 * number, _shake, world)
        case "request refused":
            world.cluster.requests_fail = 1
        case "ghost":
            loop.spawn(loop.process("ghost"), _haunt(world, trouble.seconds))
        case "fences fail":
            world.cluster.fences_fail = 1
            _shake(world)


def _trouble_replica(world: "World", it: "Replica", trouble: Trouble) -> None:
    loop = world.loop
    if trouble.kind == "kill replica":
        it.dies()
    elif trouble.kind == "pause replica":
        loop.pause(it.process)
        loop.call_for(loop.world, trouble.seconds, loop.wake, it.process)
    else:
        loop.spawn(it.process, it.retire(), "retire")


def _trouble_worker(world: "World", it: "WorkerProcess", trouble: Trouble) -> None:
    loop = world.loop
    if trouble.kind == "kill worker":
        world.kill_worker(it)
    elif trouble.kind == "pause worker":
        loop.pause(it.process)
        loop.call_for(loop.world, trouble.seconds, loop.wake, it.process)
    elif trouble.kind == "retire worker":
        world.retire_worker(it)
    elif trouble.kind in {"deaf worker", "fence-deaf worker"}:
        # it goes on for as long as it may without a commit; the others have its work at once
        world.cluster.deaf[id(it.process)] = "all" if trouble.kind == "deaf worker" else "fences"
        loop.call_for(loop.world, trouble.seconds, world.cluster.deaf.pop, id(it.process), None)
        if trouble.kind == "deaf worker":
            _expel(world, it)
    else:
        _expel(world, it)


def _expel(world: "World", it: "WorkerProcess") -> None:
    """Its memberships are taken from it, as a supervisor does that believes it dead."""
    assert it.service is not None
    for tier in it.service._tiers:
        if tier.member is not None and tier.group in world.groups:
            world.groups[tier.group].leave(tier.member.member_id)


async def _haunt(world: "World", seconds: float) -> None:
    """A worker that slept while it took partitions over: it wakes, fences them, and is gone.

    Its A is higher than the owner's, so that what the owner says behind its fence is invisible.
    """
    chance, memory = world.random, world.cluster.memory
    log = SimLog(world.cluster, world.groups, world.loop.process("ghost"))
    topic = request_topic("default", chance.choice(world.plan.tiers))
    qs = tuple(sorted(str(q) for q in qs_of(world.cluster, [topic])))[: chance.choice([1, 3])]
    replies = qs_of(world.cluster, [REPLIES])
    try:
        ends = await log.end_offsets(replies)
        a = Acquired(qs=qs, incarnation="ghost", ends=tuple(ends[p] for p in replies))
        appender = await log.appender()
        epoch = (await appender.append(FENCES, 0, encode(a))).offset
        if epoch < 0:
            return
        for index in range(memory.size(REPLIES)):
            if chance.random() < 0.9:
                await asyncio.sleep(seconds * chance.random())
                await appender.append(REPLIES, index, encode(Fence(epoch=epoch, qs=qs)))
    except LogError:
        return


def _shake(world: "World") -> None:
    """A rebalance for no reason: everybody joins again."""
    for tier in world.plan.tiers:
        group = world.groups.get(f"inferlog.{request_topic('default', tier)}")
        if group is not None and not world.peaceful:
            group.shake()


def _weather(cluster: Cluster, weather: Weather, seconds: float) -> None:
    cluster.weather = weather

    def clears() -> None:
        if cluster.weather is weather:
            cluster.calm()

    cluster.loop.call_for(cluster.process, seconds, clears)
