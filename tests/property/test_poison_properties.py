"""Random lives of one request: what the fold counts is what really happened."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.epochs import FenceLog
from core.recovery import Fold
from core.stream import Reader
from schemas.fences import Acquired, Fenced
from schemas.replies import AnyEvent, Events, Fence, Released, ReplyRecord, Started, Tokens
from schemas.requests import COMPLETIONS, RequestInfo

Q, OTHER = "requests.default.premium/0", "requests.default.premium/1"
INFO = RequestInfo(endpoint=COMPLETIONS, model="m", tier="premium")
WORKERS = 3


@dataclass
class Step:
    """One ownership of the request: who takes it, how many tokens it brings, how it ends."""

    worker: int
    tokens: int
    end: str
    """dies | releases | overtaken (lives, heard of later) | engine (lives; its engine dies)"""
    elsewhere: bool
    """It takes another partition while it owns this one, which proves nothing."""


STEPS = st.lists(
    st.builds(
        Step,
        worker=st.integers(0, WORKERS - 1),
        tokens=st.integers(0, 2),
        end=st.sampled_from(["dies", "releases", "overtaken", "engine"]),
        elsewhere=st.booleans(),
    ),
    max_size=9,
)


class World:
    """The logs as owners write them, and beside them what is true."""

    def __init__(self) -> None:
        self.fences = FenceLog()
        self.replies: list[ReplyRecord] = []
        self.deaths = 0
        self._lives = [0] * WORKERS
        self._offset = 0
        self._tokens = 0

    def incarnation(self, worker: int) -> str:
        return f"{worker}.{self._lives[worker]}"

    def acquire(self, worker: int, q: str) -> int:
        epoch = self._offset
        ends = (len(self.replies),)
        it = Acquired(qs=(q,), incarnation=self.incarnation(worker), ends=ends)
        self.fences.feed(epoch, 0, it)
        self.replies.append(Fence(epoch=epoch, qs=(q,)))
        ends = (len(self.replies),)
        self.fences.feed(epoch + 1, 0, Fenced(epoch=epoch, ends=ends))
        self._offset += 2
        return epoch

    def take(self, step: Step) -> None:
        epoch = self.acquire(step.worker, Q)
        # the owner counts from the log, as the next one will
        starts = folded(self)
        self._say(
            Started(
                **self._who(epoch),
                starts=starts + 1,
                counts=(self._tokens,),
                info=INFO,
                worker=str(step.worker),
            )
        )
        if step.elsewhere:
            self.acquire(step.worker, OTHER)
        for _ in range(step.tokens):
            it = Tokens(**self._who(epoch), seq=self._tokens, token_ids=(1,), text="x")
            self._say(it)
            self._tokens += 1
        self.deaths = 0 if step.tokens else self.deaths
        self._finish(step, epoch)

    def _finish(self, step: Step, epoch: int) -> None:
        if step.end == "releases":
            self._say(Released(**self._who(epoch)))
        elif step.end == "dies":
            self.deaths += 1
            self._lives[step.worker] += 1
        elif step.end == "engine":
            # the worker goes on as a new incarnation, and is heard of again
            self.deaths += 1
            self._lives[step.worker] += 1
            self.acquire(step.worker, OTHER)
        else:
            self.acquire((step.worker + 1) % WORKERS, Q)
            self.acquire(step.worker, OTHER)  # heard of again, once its epoch had ended

    def _who(self, epoch: int) -> dict[str, Any]:
        return {"id": "r1", "tenant": "acme", "q": Q, "offset": 7, "epoch": epoch}

    def _say(self, event: AnyEvent) -> None:
        self.replies.append(Events(events=(event,)))


def folded(world: World) -> int:
    fold = Fold(0, Reader(), frozenset({Q}), owners=world.fences)
    for position, record in enumerate(world.replies):
        fold.feed(position, record)
    return fold.deaths((Q, 7))


@given(STEPS)
def test_the_fold_counts_the_deaths_since_the_last_progress(steps: list[Step]) -> None:
    world = World()
    for step in steps:
        world.take(step)
        assert folded(world) == world.deaths


@given(STEPS, st.integers(0, 8))
def test_what_is_stored_twice_changes_nothing(steps: list[Step], twice: int) -> None:
    world = World()
    for step in steps:
        world.take(step)
    before = folded(world)
    if world.replies:
        place = twice % len(world.replies)
        if not isinstance(world.replies[place], Fence):
            world.replies.insert(place, world.replies[place])
    assert folded(world) == before
