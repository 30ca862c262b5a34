"""Taking request partitions over: steps 0 to 5 of the protocol, and what is owned since.

`acquire` turns "the group gave me these partitions" into "I alone may speak for them, and I know
what was said before me". It writes one A, one fence per reply partition and one B, and reads
`replies` only for suspects: offsets that an older owner may have started.
"""

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from consumers.inference.replies import ReplyWriter
from core.offsets import CommitPoint, OffsetTracker, decode_positions, encode_positions
from core.poison import Life
from core.recovery import Fold, RunFresh, Verdict
from core.runs import Feature
from core.stream import Key, Reader
from schemas.codec import encode
from schemas.fences import Acquired, Fenced
from schemas.operations import Start
from schemas.replies import Started
from schemas.requests import Body
from topics.fence_tail import FENCES, FenceTail
from topics.ports import Committed, Log, LogError, Partition
from topics.scan import REPLIES, late_reader, scan

ACKS_SECONDS_MAX = 10.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Owned:
    """A request partition that this worker owns under `epoch`.

    Offsets below `suspect_end` may have been spoken for by older owners: `folds` (one per reply
    partition) say what is visible of them; `found` where their first events lie, up to the offset
    `last_started`. Nothing may be said on a reply partition from `reply_partitions` on: no fence of
    this epoch lies there. `moved`: the committed offset was not on the log.
    """

    q: Partition
    epoch: int
    tracker: OffsetTracker
    suspect_end: int = 0
    folds: Mapping[int, Fold] = field(default_factory=dict)
    found: dict[int, tuple[int, int]] = field(default_factory=dict)
    last_started: int = -1
    reply_partitions: int = 0
    moved: bool = False

    @property
    def started_ahead(self) -> bool:
        """Whether a request that an older owner had begun is still to be picked up."""
        return self.tracker.next <= self.last_started

    def verdict(
        self,
        key: Key,
        offset: int,
        reply_partition: int,
        body: Body,
        resumes: AbstractSet[Feature] = frozenset(),
    ) -> Verdict:
        """What to do with the suspect at `offset` on an engine that `resumes` these features."""
        fold = self.folds.get(reply_partition)
        if fold is None:
            return RunFresh()
        return fold.verdict(key, (str(self.q), offset), body, resumes)

    def said(self, offset: int) -> Started | None:
        """The latest `Started` that an older owner said of the suspect at `offset`."""
        lives = self._lives(offset)
        return lives[0].starts[-1].said if lives else None

    def history(self, offset: int) -> tuple[Start, ...]:
        """All that is known of the starts of the suspect at `offset`."""
        return tuple(start for life in self._lives(offset) for start in life.history())

    def _lives(self, offset: int) -> list[Life]:
        origin = (str(self.q), offset)
        return [fold.lives[origin] for fold in self.folds.values() if origin in fold.lives]

    def settled(self) -> None:
        """Lets go of the folds once every suspect was picked up: their answers can be long."""
        if self.folds and self.tracker.next >= self.suspect_end:
            self.folds = {}


class Overtaken(LogError):
    """Another owner fenced the same partitions while we did."""


class Ownership:
    """Acquires request partitions of one group. Holds no state of its own between calls.

    `incarnation` is replaced when what it ran has died with its engine: an acquisition that is under
    way then is begun again under the new one.
    """

    def __init__(
        self,
        log: Log,
        group: str,
        incarnation: str,
        fence_tail: FenceTail,
        writer: ReplyWriter,
        span_offsets: int,
    ) -> None:
        self._log = log
        self._group = group
        self.incarnation = incarnation
        self._fence_tail = fence_tail
        self._writer = writer
        self._span_offsets = span_offsets

    @property
    def reached(self) -> Mapping[int, int]:
        """How far each reply partition has come, as far as this worker knows."""
        return self._writer.reached

    @staticmethod
    def metadata(point: CommitPoint) -> str:
        """The metadata of a commit."""
        return encode_positions(point.positions)

    async def acquire(self, qs: frozenset[Partition]) -> dict[Partition, Owned]:
        """Runs steps 1 to 5. Raises LogError (try again) or UndecodableRecord (do not take it)."""
        names = tuple(sorted(map(str, qs)))
        incarnation = self.incarnation
        await self._writer.reopen()
        await self._writer.settled(ACKS_SECONDS_MAX)  # step 1
        replies = await self._reply_partitions()
        had_owner = {it for it in qs if self._fence_tail.fences.highest(str(it)) >= 0}
        epoch = await self._announce(names, await self._ends(replies))  # step 2
        await self._writer.fence(len(replies), epoch, names)  # step 3
        ends = await self._ends(replies)
        await self._append_fence_record(encode(Fenced(epoch=epoch, ends=ends)))
        for index, end in enumerate(ends):
            self._writer.learn(index, end)
        owned, marks = await self._positions(qs, epoch)  # step 4
        for it in owned.values():
            it.reply_partitions = len(ends)
        await self._fold(owned, marks, ends)  # step 5
        if strangers := {q for q in qs if q not in had_owner and marks[q] is not None}:
            await self._check_all(strangers, epoch, ends)
        if self.incarnation != incarnation:
            raise Overtaken("the engine died meanwhile")
        _log.info("own %s under epoch %s", ", ".join(names), epoch)
        return owned

    async def _reply_partitions(self) -> list[Partition]:
        # asked anew: what an A does not list it says nothing about
        count = await self._log.partition_count(REPLIES, fresh=True)
        return [Partition(REPLIES, i) for i in range(count)]

    async def _ends(self, replies: list[Partition]) -> tuple[int, ...]:
        ends = await self._log.end_offsets(replies)
        return tuple(ends[partition] for partition in replies)

    async def _append_fence_record(self, value: bytes) -> None:
        appender = await self._log.appender()
        try:
            await appender.append(FENCES.topic, FENCES.index, value)
        finally:
            await appender.close()

    async def _announce(self, names: tuple[str, ...], ends: tuple[int, ...]) -> int:
        """Step 2: appends A and reads it back; its offset as read, never as acked, is the epoch."""
        await self._fence_tail.caught_up()
        before = self._fence_tail.position
        await self._append_fence_record(
            encode(Acquired(qs=names, incarnation=self.incarnation, ends=ends))
        )
        await self._fence_tail.caught_up()
        owners = {id(owner): owner for q in names if (owner := self._fence_tail.fences.owner(q))}
        if len(owners) != 1:
            raise Overtaken("another owner fenced some of the partitions meanwhile")
        (owner,) = owners.values()
        if owner.incarnation != self.incarnation or owner.epoch < before or owner.qs != names:
            raise Overtaken("another owner fenced the partitions meanwhile")
        return owner.epoch

    async def _positions(
        self, qs: frozenset[Partition], epoch: int
    ) -> tuple[dict[Partition, Owned], dict[Partition, tuple[int, ...] | None]]:
        """Step 4: the committed offset with its metadata from one answer, and the suspects' end."""
        wanted = sorted(qs)
        committed = await self._log.committed(self._group, wanted)
        starts = await self._log.start_offsets(wanted)
        ends = await self._log.end_offsets(wanted)
        owned: dict[Partition, Owned] = {}
        marks: dict[Partition, tuple[int, ...] | None] = {}
        for q in wanted:
            offset, marks[q] = starts[q], None
            if (at := committed.get(q)) is not None:
                offset = min(max(at.offset, starts[q]), ends[q])
                marks[q] = decode_positions(at.metadata)
                if offset != at.offset:
                    _log.critical("%s: committed %s is off the log, from %s", q, at.offset, offset)
            suspect_end = min(ends[q], offset + self._span_offsets)
            moved = at is not None and offset != at.offset
            owned[q] = Owned(q, epoch, OffsetTracker(offset), suspect_end, moved=moved)
        return owned, marks

    async def _fold(
        self,
        owned: Mapping[Partition, Owned],
        marks: Mapping[Partition, tuple[int, ...] | None],
        ends: tuple[int, ...],
    ) -> None:
        """Step 5: reads each reply partition once, for all partitions that have suspects."""
        suspects = {q: it for q, it in owned.items() if it.tracker.next < it.suspect_end}
        if not suspects:
            return
        names = frozenset(map(str, suspects))
        folds: dict[int, Fold] = {}
        for index, end in enumerate(ends):
            # without metadata nothing says where older owners began: read all there is
            since = min(
                mark[index] if mark is not None and index < len(mark) else 0
                for mark in (marks[q] for q in suspects)
            )
            begin = await late_reader(self._log, self._fence_tail, index, min(since, end))
            owners = self._fence_tail.fences
            fold = folds[index] = Fold(index, begin.reader, names, begin.truncated, owners)
            async for record, reply in scan(self._log, index, begin.position, end):
                fold.feed(record.offset, reply)
            await self._check(begin.reader, {q: it.epoch for q, it in suspects.items()})
        by_name = {str(q): it for q, it in suspects.items()}
        for it in by_name.values():
            it.folds = folds
        for index, fold in folds.items():
            for (name, offset), position in fold.first.items():
                it = by_name[name]
                if it.tracker.next <= offset < it.suspect_end:
                    it.found[offset] = (index, position)
        for it in by_name.values():
            it.last_started = max(it.found, default=-1)

    async def _check_all(self, qs: set[Partition], epoch: int, ends: tuple[int, ...]) -> None:
        """Of these somebody committed, but `fences` knew no owner: it forgot them, or was recreated.

        Then older owners' epochs may be higher than ours, and all that we say would be dropped.
        """
        _log.warning("no owner of %s was known: looking for their fences", sorted(map(str, qs)))
        for index, end in enumerate(ends):
            begin = await late_reader(self._log, self._fence_tail, index, 0, lambda _: False)
            async for _, reply in scan(self._log, index, begin.position, end):
                begin.reader.feed(reply)
            await self._check(begin.reader, dict.fromkeys(qs, epoch))

    async def _check(self, reader: Reader, epochs: Mapping[Partition, int]) -> None:
        """No epoch above ours may have been met, unless its owner is known."""
        for q, epoch in epochs.items():
            floor = reader.floors.get(str(q), -1)
            if floor <= epoch:
                continue
            await self._fence_tail.caught_up()
            if self._fence_tail.fences.highest(str(q)) < floor:
                await self._fence_tail.lost(
                    f"{q} has epoch {floor} on replies, and ours is {epoch}"
                )
                await self._fence_tail.caught_up()
            raise Overtaken("another owner fenced some of the partitions meanwhile")


async def unchanged_commit(
    log: Log, group: str, qs: frozenset[Partition]
) -> dict[Partition, Committed]:
    """What a commit must say to change nothing: offset and metadata as they are."""
    wanted = sorted(qs)
    committed = await log.committed(group, wanted)
    missing = [q for q in wanted if q not in committed]
    starts = await log.start_offsets(missing) if missing else {}
    return {q: committed.get(q) or Committed(starts[q], "") for q in wanted}


async def oldest_append_ms(log: Log, owned: Owned) -> int | None:
    """The append time of the first suspect. Raises LogError.

    None if no suspect is there: what a transaction leaves behind has an offset and is no record.
    """
    q, offset, end = owned.q, owned.tracker.next, owned.suspect_end
    tail = await log.tail({q: offset})
    try:
        for _ in range(20):
            for record in await tail.read(max_wait_seconds=0.5, max_records=1):
                return record.time_ms
            if tail.position(q) >= end:
                return None
    finally:
        await tail.close()
    raise LogError(f"{q}: the record at {offset} could not be read")
