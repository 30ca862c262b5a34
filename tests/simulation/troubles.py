"""What happens to a world: one function that knows every kind of trouble."""

from typing import TYPE_CHECKING

from tests.simulation.cluster import Cluster, Weather
from tests.simulation.plan import Trouble
from topics.catalogue import request_topic

if TYPE_CHECKING:
    from tests.simulation.world import World, WorkerProcess


def make_trouble(world: "World", trouble: Trouble) -> None:
    """Begins it; what has a length ends by itself."""
    loop = world.loop
    kind, seconds = trouble.kind, trouble.seconds
    if world.trace is not None:
        world.trace.say(f"*** {kind} {seconds:.2f} {trouble.weather or ''}")
    world.trouble_lasts(kind, "", max(seconds, world.plan.session_s + 3.0))
    if kind.endswith("worker") or kind == "blink":
        running = [it for it in world.workers.values() if it.running]
        if running:
            world.counts[kind] += 1
            _trouble_worker(world, world.random.choice(running), trouble)
    elif kind.endswith("replica"):
        ready = [it for it in world.replicas.values() if it.ready]
        if not ready:
            return
        world.counts[kind] += 1
        it = world.random.choice(ready)
        if kind == "kill replica":
            it.dies()
        elif kind == "pause replica":
            loop.pause(it.process)
            loop.call_for(loop.world, seconds, loop.wake, it.process)
        else:
            loop.spawn(it.process, it.retire(), "retire")
    elif kind == "broker away":
        world.cluster.stop()
        loop.call_for(loop.world, seconds, world.cluster.start)
    elif kind == "weather":
        world.counts[kind] += 1
        assert trouble.weather is not None
        _weather(world.cluster, trouble.weather, seconds)
    elif kind == "storm":
        world.counts[kind] += 1
        for number in range(4):
            loop.call_for(loop.world, 0.4 * number, _shake, world)
    elif kind == "fences fail":
        world.counts[kind] += 1
        world.cluster.fences_fail = 1
        _shake(world)


def _trouble_worker(world: "World", it: "WorkerProcess", trouble: Trouble) -> None:
    loop = world.loop
    if trouble.kind == "kill worker":
        world.kill_worker(it)
    elif trouble.kind == "pause worker":
        loop.pause(it.process)
        loop.call_for(loop.world, trouble.seconds, loop.wake, it.process)
    elif trouble.kind == "retire worker":
        world.retire_worker(it)
    else:
        _expel(world, it)


def _expel(world: "World", it: "WorkerProcess") -> None:
    """Its memberships are taken from it, as a supervisor does that believes it dead."""
    assert it.service is not None
    for tier in it.service._tiers:
        if tier.member is not None and tier.group in world.groups:
            world.groups[tier.group].leave(tier.member.member_id)


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
