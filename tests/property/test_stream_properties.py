"""Readers of one log agree, wherever they begin and whatever happened to its writers.

A small world: two request partitions, two reply partitions, owners that come and go. Owners that
were overtaken go on speaking; records and fences are stored twice; requests are published twice.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from core.epochs import FenceLog
from core.recovery import Done, Fold, Resume, RunFresh
from core.stream import Reader
from schemas.fences import Acquired, Fenced, FenceRecord
from schemas.replies import (
    AnyEvent,
    AnyTerminal,
    Events,
    Fence,
    Finished,
    ReplyRecord,
    Started,
    Tokens,
    TokenUsage,
)
from schemas.requests import COMPLETIONS, Body, RequestInfo

QS = ("requests.default.standard/0", "requests.default.standard/1")
REPLY_PARTITIONS = 2
INFO = RequestInfo(endpoint=COMPLETIONS, model="m", tier="standard")
BODY = Body(prompt="x")


def digest(tokens: Sequence[int]) -> int:
    return zlib.crc32(repr(list(tokens)).encode())


@dataclass
class Publication:
    """One published copy: `bound` lies at or before the first event of the request."""

    name: str
    partition: int
    bound: int
    wanted: int


@dataclass
class World:
    chance: random.Random
    requests: dict[str, list[Publication]] = field(default_factory=lambda: {q: [] for q in QS})
    replies: list[list[ReplyRecord]] = field(
        default_factory=lambda: [[] for _ in range(REPLY_PARTITIONS)]
    )
    fences: list[FenceRecord] = field(default_factory=list)
    published: list[Publication] = field(default_factory=list)

    def publish(self) -> None:
        """A new request, or another copy of one that was published on the other q."""
        chance = self.chance
        if self.published and chance.random() < 0.3:
            copy = chance.choice(self.published)
        else:
            partition = chance.randrange(REPLY_PARTITIONS)
            name = f"r{len(self.published)}"
            bound = len(self.replies[partition])
            copy = Publication(name, partition, bound, chance.randint(0, 6))
            self.published.append(copy)
        q = chance.choice(QS)
        if all(each.name != copy.name for each in self.requests[q]):
            self.requests[q].append(copy)

    def ends(self) -> tuple[int, ...]:
        return tuple(map(len, self.replies))

    def fence_log(self) -> FenceLog:
        log = FenceLog()
        for offset, record in enumerate(self.fences):
            log.feed(offset, offset, record)
        return log

    def late_fold(self, partition: int, position: int, end: int, qs: frozenset[str]) -> Fold:
        floors, start = self.fence_log().late_start(partition, position)
        fold = Fold(partition, Reader(floors), qs)
        for place in range(start, end):
            fold.feed(place, self.replies[partition][place])
        return fold

    def say(self, partition: int, event: AnyEvent) -> None:
        for _ in range(self.chance.choice((1, 1, 1, 2))):  # stored twice: its ack was lost
            self.replies[partition].append(Events(events=(event,)))


class Owner:
    """One ownership of `q`. It goes on speaking under its epoch for as long as it is stepped."""

    def __init__(self, world: World, q: str) -> None:
        self.world, self.q = world, q
        self.epoch = -1
        self.running: dict[int, list[int]] = {}
        self.started: set[int] = set()
        self.taken = 0

    def acquire(self) -> Iterator[None]:
        """Each yield is a moment in which others may speak."""
        world = self.world
        ends = world.ends()
        yield
        self.epoch = len(world.fences)
        world.fences.append(Acquired(qs=(self.q,), incarnation=str(self.epoch), ends=ends))
        for log in world.replies:
            for _ in range(world.chance.choice((1, 1, 2))):
                yield
                log.append(Fence(epoch=self.epoch, qs=(self.q,)))
        yield
        behind = world.ends()
        yield
        world.fences.append(Fenced(epoch=self.epoch, ends=behind))
        for offset, asked in enumerate(world.requests[self.q]):
            here = frozenset({self.q})
            fold = world.late_fold(asked.partition, asked.bound, behind[asked.partition], here)
            match fold.verdict(("acme", asked.name), (self.q, offset), BODY):
                case Done():
                    pass
                case RunFresh():
                    self.running[offset] = []
                case Resume(logged):
                    self.running[offset] = list(logged[0].token_ids)
                case interrupted:
                    raise AssertionError(f"a fault of ours: {interrupted}")
        self.taken = len(world.requests[self.q])

    def step(self) -> bool:
        """Says one thing; False if there is nothing left to be said."""
        asked = self.world.requests[self.q]
        for offset in range(self.taken, len(asked)):
            self.running[offset] = []
        self.taken = len(asked)
        if not self.running:
            return False
        offset = self.world.chance.choice(list(self.running))
        self.world.say(asked[offset].partition, self.next_event(offset, asked[offset]))
        return True

    def next_event(self, offset: int, asked: Publication) -> AnyEvent:
        tokens = self.running[offset]
        name, q, epoch = asked.name, self.q, self.epoch
        if offset not in self.started:
            self.started.add(offset)
            return Started(
                id=name,
                tenant="acme",
                q=q,
                offset=offset,
                epoch=epoch,
                starts=1,
                counts=(len(tokens),),
                info=INFO,
                worker="w",
            )
        if len(tokens) < asked.wanted:
            count = min(self.world.chance.choice((1, 2)), asked.wanted - len(tokens))
            new = tuple(self.world.chance.getrandbits(30) for _ in range(count))
            seq = len(tokens)
            tokens.extend(new)
            return Tokens(
                id=name,
                tenant="acme",
                q=q,
                offset=offset,
                epoch=epoch,
                seq=seq,
                token_ids=new,
                text="",
            )
        del self.running[offset]
        usage = TokenUsage(prompt_tokens=digest(tokens), completion_tokens=len(tokens))
        return Finished(
            id=name,
            tenant="acme",
            q=q,
            offset=offset,
            epoch=epoch,
            counts=(len(tokens),),
            usage=usage,
            finish_reasons=("stop",),
        )


def history(seed: int) -> World:
    """A world in which all was said that the last owners had to say."""
    chance = random.Random(seed)
    world = World(chance)
    owners: list[Owner] = []

    def others(steps: int) -> None:
        for _ in range(steps if owners else 0):
            chance.choice(owners).step()

    def replace(q: str) -> Owner:
        new = Owner(world, q)
        for _ in new.acquire():
            others(chance.choice((0, 0, 1, 3)))
        owners.append(new)
        return new

    for _ in range(chance.randint(1, 6)):
        for _ in range(chance.randint(0, 2)):
            world.publish()
        replace(chance.choice(QS))
        others(chance.randint(0, 12))
    world.publish()
    for last in [replace(q) for q in QS]:
        while last.step():
            others(chance.choice((0, 0, 1)))
    others(10)
    return world


class Accepted:
    """What one reader accepted of every request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.terminals: dict[str, AnyTerminal] = {}

    def read(self, reader: Reader, records: Sequence[ReplyRecord]) -> "Accepted":
        for record in records:
            for event in reader.feed(record):
                if isinstance(event, Tokens):
                    tokens = self.tokens.setdefault(event.id, [])
                    assert event.seq == len(tokens), "positions are contiguous from 0"
                    assert event.id not in self.terminals, "nothing follows a terminal"
                    tokens.extend(event.token_ids)
                elif isinstance(event, AnyTerminal):
                    assert event.id not in self.terminals, "one terminal"
                    self.terminals[event.id] = event
        return self


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_tail_and_late_readers_accept_the_same_whole_answers(
    seed: int, chance: random.Random
) -> None:
    world = history(seed)
    fences = world.fence_log()
    tails = [Accepted().read(Reader(), log) for log in world.replies]
    for asked in {
        each.name: each for copies in world.requests.values() for each in copies
    }.values():
        tail = tails[asked.partition]
        tokens, terminal = tail.tokens.get(asked.name, []), tail.terminals.get(asked.name)
        assert isinstance(terminal, Finished), "every request ends, none as interrupted"
        assert len(tokens) == asked.wanted
        assert terminal.usage.prompt_tokens == digest(tokens), "tokens of one run and its heirs"
        for position in {asked.bound, chance.randint(0, asked.bound)}:
            floors, start = fences.late_start(asked.partition, position)
            late = Accepted()
            reader = Reader(floors, lambda key, name=asked.name: key[1] == name)  # type: ignore[misc]
            late.read(reader, world.replies[asked.partition][start:])
            assert late.tokens.get(asked.name, []) == tokens
            assert late.terminals.get(asked.name) == terminal


def test_the_world_has_what_it_is_about() -> None:
    """Without overtaken speakers and resumed runs the property above would say little."""
    worlds = [history(seed) for seed in range(60)]
    hidden = resumed = doubled = 0
    for world in worlds:
        for log in world.replies:
            floors: dict[str, int] = {}
            for earlier, record in zip([None, *log], log, strict=False):
                doubled += record == earlier
                if isinstance(record, Fence):
                    floors[record.qs[0]] = max(floors.get(record.qs[0], -1), record.epoch)
                elif isinstance(record, Events):
                    for event in record.events:
                        hidden += event.epoch < floors.get(event.q, -1)
                        resumed += isinstance(event, Started) and sum(event.counts) > 0
    assert min(hidden, resumed, doubled) > 20
