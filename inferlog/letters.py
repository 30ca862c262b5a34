"""What lies on `dead-letters`: letters, and what operators did with them; read once, within bounds."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from inferlog.letter_settings import ALL, LetterFilter, since_ms
from inferlog.log_reading import read_span
from inferlog.problems import CommandFailed, WrongUsage
from inferlog.progress import progress
from schemas.codec import UndecodableRecord, decode_dead_letter, decode_letter
from schemas.ids import bare_request_id
from schemas.operations import DeadLetter, LetterMark
from topics.catalogue import DEAD_LETTERS
from topics.ports import Log, Partition, Record

LETTERS_MAX = 100_000
"""Letters kept in memory, without their values; beyond it the oldest are left out, and it is said."""
PROGRESS_FROM = 2_000

Place = tuple[int, int]
"""Partition and offset of a letter on `dead-letters`."""


@dataclass(slots=True)
class Letter:
    """A letter without its value. `place` says where it lies, `where` the record that it holds."""

    place: Place
    parked_ms: int
    where: str
    reason: str
    detail: str
    request_id: str | None
    tenant: str | None
    value_bytes: int
    starts: int
    redriven_as: list[str | None] = field(default_factory=list)
    """Ids under which it runs again; None where its bytes were published as they were."""
    dropped: bool = False
    copies: list[Place] = field(default_factory=list)
    """Where else it lies: a record may be parked twice."""

    @property
    def address(self) -> str:
        """As commands take it."""
        return f"{self.place[0]}/{self.place[1]}"

    @property
    def state(self) -> str:
        """In a word, what became of it."""
        if self.dropped:
            return "dropped"
        return "redriven" if self.redriven_as else "parked"


class LetterBox:
    """The fold of `dead-letters`. A record that was parked twice is one letter: the first."""

    def __init__(self) -> None:
        self.letters: dict[str, Letter] = {}
        self.cut = False
        self.undecodable = 0
        self.ends: dict[int, int] = {}
        self._by_place: dict[Place, Letter] = {}

    def feed(self, record: Record) -> None:
        """Takes the next record of a partition."""
        try:
            found = decode_letter(record.value)
        except UndecodableRecord:
            self.undecodable += 1
            return
        if isinstance(found, LetterMark):
            self._mark(found)
            return
        where = f"{found.topic}/{found.partition}@{found.offset}"
        place = (record.partition, record.offset)
        known = self.letters.get(where)
        if known is None:
            known = self.letters[where] = Letter(
                place,
                record.time_ms,
                where,
                found.reason,
                found.detail,
                found.request_id,
                found.tenant,
                len(found.value or b""),
                len(found.starts),
            )
        else:
            known.copies.append(place)
        self._by_place[place] = known
        while len(self.letters) > LETTERS_MAX:
            self.cut = True
            oldest = self.letters.pop(next(iter(self.letters)))
            for at in (oldest.place, *oldest.copies):
                del self._by_place[at]

    def _mark(self, mark: LetterMark) -> None:
        letter = self._by_place.get((mark.partition, mark.offset))
        if letter is None:
            return  # its letter is gone already
        if mark.action == "dropped":
            letter.dropped = True
        elif mark.action == "redriven":
            letter.redriven_as.append(mark.new_id)
        elif mark.new_id in letter.redriven_as:
            letter.redriven_as.remove(mark.new_id)

    def find(self, named: str) -> Letter:
        """The letter that a place or a request id names. Raises CommandFailed or WrongUsage."""
        partition, slash, offset = named.strip().partition("/")
        if slash and partition.isdecimal() and offset.isdecimal():
            letter = self._by_place.get((int(partition), int(offset)))
            if letter is None:
                raise CommandFailed(f"there is no letter at {named} (any more)")
            return letter
        try:
            request_id = bare_request_id(named.strip())
        except ValueError:
            raise WrongUsage(
                f"{named!r} is neither the place of a letter (partition/offset) nor a request id"
            ) from None
        found = [it for it in self.letters.values() if it.request_id == request_id]
        if not found:
            raise CommandFailed(f"there is no letter of request {request_id}")
        if len(found) > 1:
            places = ", ".join(it.address for it in found)
            raise CommandFailed(f"several letters name request {request_id}: {places}; choose one")
        return found[0]

    def matching(self, wanted: LetterFilter, now_ms: int, *, dropped: bool) -> list[Letter]:
        """The newest letters that the filter lets through, oldest first."""
        since = since_ms(wanted.since, now_ms)
        request_id = wanted.request_id and _bare(wanted.request_id)
        found = [
            it
            for it in self.letters.values()
            if it.parked_ms >= since
            and wanted.reason in (None, it.reason)
            and wanted.tenant in (None, it.tenant)
            and request_id in (None, it.request_id)
            and (dropped or not it.dropped)
        ]
        return found[-wanted.limit :]

    def chosen(self, named: str, wanted: LetterFilter, now_ms: int, *, done: bool) -> list[Letter]:
        """One letter by its name, or with `all` those of the filter.

        With `done` also those that were redriven or dropped already.
        """
        if named != ALL:
            return [self.find(named)]
        every = self.matching(wanted, now_ms, dropped=done)
        return [it for it in every if done or it.state == "parked"]


def _bare(text: str) -> str:
    try:
        return bare_request_id(text.strip())
    except ValueError as error:
        raise WrongUsage(f"{text!r} is no request id: {error}") from None


async def read_letters(log: Log) -> LetterBox:
    """Everything on `dead-letters` up to its present end, with progress if it is much."""
    box = LetterBox()
    count = await log.partition_count(DEAD_LETTERS)
    here = [Partition(DEAD_LETTERS, index) for index in range(count)]
    starts, ends = await log.start_offsets(here), await log.end_offsets(here)
    box.ends = {it.index: ends[it] for it in here}
    total = sum(ends[it] - starts[it] for it in here)
    if total < PROGRESS_FROM:
        for it in here:
            async for record in read_span(log, it, starts[it], ends[it]):
                box.feed(record)
        return box
    with progress("dead letters read", total) as told:
        done = 0
        for it in here:
            async for record in read_span(log, it, starts[it], ends[it]):
                box.feed(record)
                done += 1
                told(done)
        told(total)
    return box


async def read_whole(log: Log, letter: Letter) -> DeadLetter:
    """The letter with its value. Raises CommandFailed if it is gone."""
    partition, offset = letter.place
    async for record in read_span(log, Partition(DEAD_LETTERS, partition), offset, offset + 1):
        return decode_dead_letter(record.value)
    raise CommandFailed(f"the letter at {letter.address} is gone")


async def marks_since(log: Log, letter: Letter, start: int, end: int) -> Iterable[LetterMark]:
    """What others did with the letter in [start, end) of its partition."""
    found = []
    async for record in read_span(log, Partition(DEAD_LETTERS, letter.place[0]), start, end):
        try:
            it = decode_letter(record.value)
        except UndecodableRecord:
            continue
        if isinstance(it, LetterMark) and (it.partition, it.offset) == letter.place:
            found.append(it)
    return found
