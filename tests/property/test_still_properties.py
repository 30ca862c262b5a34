"""Whatever retention takes of `fences`, a late reader finds the floors it would have found.

Time goes by in steps. At each step some partition may change hands (its owner writes A, and mostly B),
`replies` grows, and every living owner repeats itself each half retention of `replies`, late by up to one.
In the end `fences` has lost what is older than three retentions, `replies` what is older than one.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.epochs import FenceLog
from schemas.fences import Acquired, Fenced, FenceRecord

QS = ("requests.p.standard/0", "requests.p.standard/1", "requests.p.free/0")
RETENTION = 8
PARTITIONS = 2


@dataclass
class World:
    """`fences` with append times, and the end of each reply partition at each step."""

    fences: list[tuple[int, FenceRecord]] = field(default_factory=list)
    ends: list[tuple[int, ...]] = field(default_factory=lambda: [(0,) * PARTITIONS])
    epochs: dict[str, int] = field(default_factory=dict)
    said_at: dict[int, int] = field(default_factory=dict)

    def append(self, record: FenceRecord) -> int:
        self.fences.append((len(self.ends), record))
        return len(self.fences) - 1

    def grow(self, by: tuple[int, ...]) -> None:
        self.ends.append(tuple(a + b for a, b in zip(self.ends[-1], by, strict=True)))

    def acquire(self, qs: tuple[str, ...], by: tuple[int, ...], *, completes: bool) -> None:
        epoch = self.append(Acquired(qs=qs, incarnation="i", ends=self.ends[-1]))
        self.grow(by)
        if completes:
            self.append(Fenced(epoch=epoch, ends=self.ends[-1]))
            self.said_at[epoch] = len(self.ends)
            self.epochs |= dict.fromkeys(qs, epoch)

    def repeat(self, late: int) -> None:
        fences = self.read(0)
        for epoch in set(self.epochs.values()):
            if len(self.ends) - self.said_at[epoch] >= RETENTION // 2 + late:
                still = fences.still(
                    epoch, tuple(q for q, owner in self.epochs.items() if owner == epoch)
                )
                assert still is not None
                self.append(still)
                self.said_at[epoch] = len(self.ends)

    def read(self, since: int, unfinished_since: int = 0) -> FenceLog:
        """What a reader knows who finds no older records, and no older A that never had its B.

        The owner of such an A is gone, and where its fence may lie is asked of nobody after three
        retentions: only a process that slept as long could still write it.
        """
        finished = {it.epoch for _, it in self.fences if isinstance(it, Fenced)}
        log = FenceLog()
        for offset, (time, record) in enumerate(self.fences):
            unfinished = isinstance(record, Acquired) and offset not in finished
            if time >= (max(since, unfinished_since) if unfinished else since):
                log.feed(offset, time, record)
        return log


growths = st.tuples(*(st.integers(0, 3) for _ in range(PARTITIONS)))
takeovers = st.tuples(
    st.lists(st.sampled_from(QS), min_size=1, unique=True).map(tuple),
    growths,
    st.sampled_from([True, True, True, False]),
)
steps = st.lists(
    st.tuples(st.one_of(st.none(), st.none(), st.none(), takeovers), growths, st.integers(0, 4)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps, st.data())
def test_a_reader_after_retention_has_the_floors_of_one_that_saw_it_all(
    story: list[Any], data: st.DataObject
) -> None:
    world = World()
    world.acquire(QS, (0,) * PARTITIONS, completes=True)
    for takeover, growth, late in story:
        if takeover is not None:
            qs, by, completes = takeover
            world.acquire(qs, by, completes=completes)
        world.grow(growth)
        world.repeat(late)
    now = len(world.ends)
    kept_since = now - 3 * RETENTION
    full, cut = world.read(0, unfinished_since=kept_since), world.read(kept_since)
    for q in QS:
        assert cut.highest(q) >= world.epochs[q]
    for partition in range(PARTITIONS):
        start = world.ends[max(0, now - 1 - RETENTION)][partition]
        position = data.draw(st.integers(start, world.ends[-1][partition]))
        assert cut.late_start(partition, position) == full.late_start(partition, position)
