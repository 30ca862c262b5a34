"""Redriving and dropping dead letters: each leaves a mark on `dead-letters`, so that all can see it.

The mark of a redrive is written first and read back. The log's order then says who redrove a letter,
however many try at once; who dies between mark and publishing leaves a redrive that never ran, and
`--again` repeats it. The other order could run a request twice without anybody knowing.
"""

import secrets
from dataclasses import dataclass

import msgspec

from consumers.inference.accounts import DEAD_LETTER_VALUE_BYTES_MAX
from core.errors import Refusal
from core.limits import Limits
from core.validation import check_request
from inferlog.letters import Letter, marks_since, read_whole
from inferlog.problems import CommandFailed
from runtime.clock import SystemClock
from schemas.codec import UndecodableRecord, decode_request, encode
from schemas.envelope import request_headers
from schemas.ids import RANDOM_BITS, make_request_id, parse_request_id
from schemas.operations import DeadLetter, LetterMark
from schemas.replies import Accepted
from schemas.requests import Request
from topics.catalogue import DEAD_LETTERS, REPLIES
from topics.ports import Appended, Appender, AppendFailed, Log, LogError, Partition

CLOCK_APART_MS_MAX = 10_000
"""An id's time may differ from the broker's by so much; beyond that a worker refuses or doubts it."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """A letter runs again as `new_id`; None: its bytes were published as they were."""

    letter: Letter
    new_id: str | None


class Redriver:
    """One appender for marks and requests; `close` it at the end."""

    def __init__(self, log: Log, appender: Appender, limits: Limits) -> None:
        self._log = log
        self._appender = appender
        self._limits = limits
        self._clock = SystemClock()
        self.broken = False
        """An append is in doubt: nothing more may be done with this one."""

    async def close(self) -> None:
        """Lets go."""
        await self._appender.close()

    async def drop(self, letter: Letter) -> bool:
        """Marks a letter as dropped; False if it was already. Raises CommandFailed."""
        if letter.dropped:
            return False
        await self._mark(letter, "dropped", None)
        return True

    async def redrive(self, letter: Letter, read_to: int, *, again: bool, raw: bool) -> Redriven:
        """Publishes the letter's request anew. `read_to`: marks before it are known to the letter.

        Raises CommandFailed, which says what is known.
        """
        if letter.state != "parked" and not again:
            how = f"was redriven as {_ids(letter)}" if letter.redriven_as else "was dropped"
            raise CommandFailed(f"{letter.address} {how}; --again redrives it nevertheless")
        whole = await read_whole(self._log, letter)
        if whole.value is None or len(whole.value) >= DEAD_LETTER_VALUE_BYTES_MAX:
            raise CommandFailed(f"{letter.address} holds only a part of its record: it cannot run")
        request = None if raw else await self._renewed(letter, whole)
        new_id = request.id if request is not None else None
        mark = await self._mark(letter, "redriven", new_id)
        others = await marks_since(self._log, letter, read_to, await self._end_of(mark))
        if any(it.action != "void" and it.new_id != new_id for it in others):
            await self._mark(letter, "void", new_id)
            raise CommandFailed(f"somebody else saw to {letter.address} just now; look again")
        apart_ms = abs((mark.time_ms or 0) - self._clock.wall_ms()) if mark.time_ms else 0
        if request is not None and apart_ms > CLOCK_APART_MS_MAX:
            await self._mark(letter, "void", new_id)
            raise CommandFailed(
                f"the clock of this machine is {apart_ms / 1000:.0f} s off the broker's, so the new id "
                "would be refused; set the clock"
            )
        await self._publish(letter, whole, request)
        return Redriven(letter, new_id)

    async def _end_of(self, mark: Appended) -> int:
        """Where our mark lies; after a retried append the broker does not say."""
        if mark.offset >= 0:
            return mark.offset
        here = Partition(DEAD_LETTERS, mark.partition)
        return (await self._log.end_offsets([here]))[here]

    async def _renewed(self, letter: Letter, whole: DeadLetter) -> Request:
        """The same request under a new id in some reply partition. Raises CommandFailed."""
        try:
            old = decode_request(whole.value)
        except UndecodableRecord as error:
            raise CommandFailed(
                f"{letter.address} cannot be decoded ({error}); --raw publishes its bytes as they are"
            ) from None
        if old.tier != whole.topic.rpartition(".")[2]:
            raise CommandFailed(
                f"{letter.address} would be parked again: its 'tier' is not that of {whole.topic}"
            )
        try:
            check_request(old, self._limits)
        except Refusal as refusal:
            raise CommandFailed(
                f"{letter.address} would be parked again: {refusal.message}"
            ) from None
        partition = secrets.randbelow(await self._log.partition_count(REPLIES))
        new_id = make_request_id(self._clock.wall_ms(), partition, secrets.randbits(RANDOM_BITS))
        return msgspec.structs.replace(old, id=new_id, redrive_of=old.id, reply_from=None)

    async def _mark(self, letter: Letter, action: str, new_id: str | None) -> Appended:
        partition, offset = letter.place
        mark = LetterMark(
            partition=partition,
            offset=offset,
            action=action,  # type: ignore[arg-type]  # one of three words, all in this file
            request_id=letter.request_id,
            new_id=new_id,
        )
        key = (letter.request_id or letter.where).encode()
        try:
            return await self._appender.append(DEAD_LETTERS, partition, encode(mark), key=key)
        except AppendFailed as error:
            raise CommandFailed(f"{letter.address} could not be marked: {error}") from None
        except LogError as error:
            self.broken = True
            raise CommandFailed(
                f"whether {letter.address} was marked as {action} is unknown ({error}), and nothing "
                "else was done; look again"
            ) from None

    async def _publish(self, letter: Letter, whole: DeadLetter, request: Request | None) -> None:
        new_id = request.id if request is not None else None
        try:
            if request is None:
                await self._appender.append(
                    whole.topic, whole.partition, whole.value, key=whole.key, headers=whole.headers
                )
                return
            parts = parse_request_id(request.id)
            info = request.info()
            headers = request_headers(
                request.id,
                request.tenant,
                parts.time_ms,
                info=encode(info),
                start_seconds=request.deadlines.own_start_seconds(),
            )
            ack = self._appender.append(
                whole.topic, whole.partition, encode(request), key=whole.key, headers=headers
            )
            accepted = Accepted(id=request.id, tenant=request.tenant, info=info)
            accepted_ack = self._appender.append(REPLIES, parts.reply_partition, encode(accepted))
            await ack
            await accepted_ack
        except AppendFailed as error:
            await self._mark(letter, "void", new_id)
            raise CommandFailed(f"{letter.address} could not be published: {error}") from None
        except LogError as error:
            self.broken = True
            known = f" `inferlog log {new_id}` tells." if new_id else ""
            raise CommandFailed(
                f"whether {letter.address} was published is unknown ({error}).{known} "
                "--again redrives it if it was not."
            ) from None


def _ids(letter: Letter) -> str:
    return ", ".join(it or "it was" for it in letter.redriven_as)
