"""One reader of one reply partition, for all who read requests in it from about the same place on.

A request may join while the scan has not passed its beginning: it is watched from there on, as the
tail watches the requests made here. A member whose client is too slow is parked: it leaves with the
reader's state at that place, and goes on from there with a later scan. Scans that meet become one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from core.errors import InferlogError
from core.stream import Key, Reader, StreamState
from producer_api.scan_member import Member
from schemas.codec import UndecodableRecord, decode_reply
from topics.fence_tail import FenceTail
from topics.ports import Log, Partition, Record, Tail
from topics.read_size import SCAN_BYTES_MAX
from topics.scan import REPLIES, late_reader

GATHER_SECONDS = 0.005
"""Who comes within this time of the first starts with it; next to what opening takes it is little."""
READ_SECONDS = 0.5
RECORDS_MAX = 256
PAUSE_SECONDS = 0.005

_log = logging.getLogger(__name__)


class SharedScan:
    """`run` until nobody is left. `on_progress` is called whenever others may be let in."""

    def __init__(
        self,
        log: Log,
        fence_tail: FenceTail,
        partition: int,
        on_progress: Callable[["SharedScan"], None],
    ) -> None:
        self.members: dict[Key, list[Member]] = {}
        self.position: int | None = None
        self._right_from = 0
        """Before this offset the reader drops what was valid there: its epochs are those of here."""
        self.ended = False
        self.meet_at: int | None = None
        """Where another scan stands that this one may become one with."""
        self._log = log
        self._fence_tail = fence_tail
        self._here = Partition(REPLIES, partition)
        self._on_progress = on_progress
        self._since_ms: int | None = None
        self._start_known = False
        self._newest_ms = -1
        self._parked: set[Key] = set()  # keys whose reader state came from an earlier scan
        # dicts for sets: who is woken first must not hang on hashes, else no run could be repeated
        self._seeking: dict[Member, None] = {}  # those that have not reached their end yet
        self._unproven: dict[Key, None] = {}  # nothing of them was accepted yet: a gap may show
        self._reader: Reader | None = None
        self._tail: Tail | None = None

    # --- who may come in

    @property
    def caught_up(self) -> bool:
        """True once every member has reached the end of the log as it was when it came."""
        return self.position is not None and not self._seeking

    def admits(self, member: Member) -> bool:
        """Whether this scan will still see all that the member needs."""
        if self.ended:
            return False
        known = member.key in self.members
        if member.go_on_from is not None:
            if known or self.position is None:
                return False
            return max(self.position, self._right_from) <= member.go_on_from
        if known and member.key in self._parked:
            return False  # its reader is beyond the beginning
        if not self._start_known:
            return True
        # all records up to here are older, so its beginning lies further on
        return self._since_ms is not None and self._since_ms <= member.since_ms > self._newest_ms

    def admit(self, member: Member) -> None:
        """Takes a member that it admits."""
        if member.go_on_from is not None:
            self._parked.add(member.key)
            if self._reader is not None:
                self._restore(member)
        else:
            self._unproven[member.key] = None
            if not self._start_known and (
                self._since_ms is None or member.since_ms < self._since_ms
            ):
                self._since_ms = member.since_ms
        self.members.setdefault(member.key, []).append(member)
        if not member.at_end:
            self._seeking[member] = None

    def leave(self, member: Member) -> None:
        """Lets a member go. Idempotent."""
        self._seeking.pop(member, None)
        here = self.members.get(member.key)
        if here is None or member not in here:
            return
        here.remove(member)
        if not here:
            del self.members[member.key]
            self._parked.discard(member.key)
            self._unproven.pop(member.key, None)
            if self._reader is not None:
                self._reader.forget(member.key)

    def adopt(self, other: "SharedScan") -> None:
        """Takes over the members of a scan that stands at the same place; the readers agree there."""
        assert self._reader is not None
        for key, (members, state) in other.hand_over().items():
            if key not in self.members:
                if state is None:
                    self._unproven[key] = None
                else:
                    self._reader.states[key] = state
                    self._parked.add(key)
                    if not state.total():
                        self._unproven[key] = None
            self.members.setdefault(key, []).extend(members)

    def hand_over(self) -> "dict[Key, tuple[list[Member], StreamState | None]]":
        """Every member, with what the reader has accepted of its request; this scan has none then."""
        assert self._reader is not None
        members, self.members = self.members, {}
        states = self._reader.states
        return {key: (it, states.get(key)) for key, it in members.items()}

    def _restore(self, member: Member) -> None:
        assert self._reader is not None
        if member.state is not None:
            self._reader.states[member.key] = member.state
            member.state = None

    # --- reading

    async def run(self) -> None:
        """Opens, reads, and ends with the last member, or with a failure that all are told."""
        try:
            await self._open()
            self._on_progress(self)
            while self.members:
                await self._learn_ends()
                self._settle()
                if not self.members:
                    break
                await self._read()
        except InferlogError as error:
            self.ended = True
            _log.warning("replies/%s cannot be read: %s", self._here.index, error)
            for member in self._all():
                member.fail(error)
            self.members = {}
        finally:
            self.ended = True
            if self._tail is not None:
                await self._tail.close()

    def _all(self) -> list[Member]:
        return [member for members in self.members.values() for member in members]

    async def _open(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        self._right_from = await self._first_position()
        begin = await late_reader(
            self._log,
            self._fence_tail,
            self._here.index,
            self._right_from,
            lambda key: key in self.members,
        )
        self._reader = begin.reader
        for member in self._all():
            if member.go_on_from is None:
                continue
            if member.go_on_from < begin.position and begin.truncated:
                member.gap = True  # what it had not read yet was taken by retention
                self.leave(member)
                member.box.wake()
            else:
                self._restore(member)
        self._tail = await self._log.tail({self._here: begin.position})
        self.position = begin.position

    async def _first_position(self) -> int:
        """The first offset that any member needs."""
        since_offset: int | None = None
        asked_ms: int | None = None
        while self._since_ms is not None and asked_ms != self._since_ms:
            asked_ms = self._since_ms  # an older one may come in meanwhile
            since_offset = (await self._log.offsets_at({self._here: asked_ms}))[self._here]
        self._start_known = True
        parked = [it.go_on_from for it in self._all() if it.go_on_from is not None]
        found = [*parked, *([] if since_offset is None else [since_offset])]
        return min(found, default=0)

    async def _learn_ends(self) -> None:
        new = [member for member in self._seeking if member.end is None]
        if new:
            end = (await self._log.end_offsets([self._here]))[self._here]
            for member in new:
                member.end = end

    async def _read(self) -> None:
        assert self._tail is not None
        records = await self._tail.read(
            max_wait_seconds=READ_SECONDS,
            max_records=self._records_max(),
            max_bytes=SCAN_BYTES_MAX,
        )
        self.position = self._tail.position(self._here)
        touched = self._take(records)
        self._settle()
        self._on_progress(self)
        if self._seeking:
            await self._pause_for(touched)

    def _records_max(self) -> int:
        """How many records to read at once: not past the place where another scan stands."""
        ahead = 0 if self.meet_at is None else self.meet_at - (self.position or 0)
        return min(ahead, RECORDS_MAX) if ahead > 0 else RECORDS_MAX

    def _take(self, records: Sequence[Record]) -> dict[Member, None]:
        """Feeds the records; returns the members that were told something."""
        assert self._reader is not None
        touched: dict[Member, None] = {}
        for record in records:
            self._newest_ms = max(self._newest_ms, record.time_ms)
            try:
                visible = self._reader.feed(decode_reply(record.value))
            except UndecodableRecord:
                continue  # it binds nothing; the tail of its home has logged it
            full: dict[Member, None] = {}
            for event in visible:
                key = (event.tenant, event.id)
                for member in self.members.get(key, ()):
                    member.put(event)
                    touched[member] = None
                    if member.box.is_full:
                        full[member] = None
            for member in full:
                self._park(member, record.offset + 1)
        for member in touched:
            if member.ended:
                self._arrive(member)
                self.leave(member)
            member.box.wake()
        return touched

    def _park(self, member: Member, offset: int) -> None:
        if member.ended:
            return
        assert self._reader is not None
        state = self._reader.states.get(member.key)
        if state is not None and len(self.members[member.key]) > 1:
            state = state.copied()  # others read on with it here
        self.leave(member)
        member.park(offset, state)

    def _arrive(self, member: Member) -> None:
        member.at_end = True
        self._seeking.pop(member, None)

    def _settle(self) -> None:
        """Tells members that have reached their end, or whose beginning is gone."""
        assert self._reader is not None
        assert self.position is not None
        for member in list(self._seeking):
            if member.end is not None and self.position >= member.end:
                self._arrive(member)
                member.box.wake()
        for key in list(self._unproven):
            state = self._reader.states.get(key)
            if state is None:
                continue
            if state.total():
                self._unproven.pop(key, None)
            elif state.gap:
                for member in list(self.members.get(key, ())):
                    member.gap = True
                    self.leave(member)
                    member.box.wake()

    async def _pause_for(self, members: Iterable[Member]) -> None:
        """Lets those who read take what they were given: a scan is faster than any client."""
        while slow := [it for it in members if it.box.is_half_full and it.pauses > 0]:
            for member in slow:
                member.pauses -= 1
            await asyncio.sleep(PAUSE_SECONDS)
