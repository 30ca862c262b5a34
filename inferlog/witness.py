"""One request as the log tells it while it runs: who speaks, how far, and where another went on.

It reads beside the client's stream and by the reader's rule, so that what a client was shown can be
held against what lies on the log.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from core.stream import Reader, is_terminal
from inferlog.problems import CommandFailed
from schemas.codec import decode_reply
from schemas.ids import parse_request_id
from schemas.replies import ReplyRecord, Started, Tokens
from topics.catalogue import REPLIES
from topics.ports import Log, Partition, Tail

SKEW_MS = 30_000


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one owner said: tokens from `first` on, under its `epoch`. `worker` is its worker id."""

    worker: str
    epoch: int
    first: int


@dataclass(slots=True)
class Account:
    """Fed with the records of the request's reply partition; keeps what is visible of it.

    Begins with no epochs known: right from a request's beginning on, whose owner fenced before it.
    """

    request_id: str
    stretches: list[Stretch] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    ended: bool = False
    _reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self._reader = Reader(watched=lambda key: key[1] == self.request_id)

    def feed(self, record: ReplyRecord) -> None:
        """Takes the next record."""
        for event in self._reader.feed(record):
            if isinstance(event, Started):
                self.stretches.append(Stretch(event.worker, event.epoch, sum(event.counts)))
            elif isinstance(event, Tokens):
                self.tokens += len(event.token_ids)
                self.text += event.text
            self.ended = self.ended or is_terminal(event)

    def speaker(self) -> Stretch | None:
        """Who spoke last."""
        return self.stretches[-1] if self.stretches else None

    def after(self, stretch: Stretch) -> Stretch | None:
        """Where another owner, or the next life of the same one, went on from it."""
        place = self.stretches.index(stretch) + 1
        return self.stretches[place] if place < len(self.stretches) else None


class Witness:
    """An `Account` that reads the log. `open`, then `until_token`/`until_end`, then `close`."""

    def __init__(self, tail: Tail, account: Account, partition: Partition) -> None:
        self.account = account
        self._tail = tail
        self._name = str(partition)

    @classmethod
    async def open(cls, log: Log, request_id: str) -> Self:
        """Begins at the request's time. Raises LogError."""
        parts = parse_request_id(request_id)
        partition = Partition(REPLIES, parts.reply_partition)
        starts = await log.offsets_at({partition: max(0, parts.time_ms - SKEW_MS)})
        return cls(await log.tail(starts), Account(request_id), partition)

    async def until_token(self, count: int, seconds_max: float = 10.0) -> None:
        """Reads until the log has `count` tokens. Raises CommandFailed if it has not in time."""
        what = f"{count} tokens, which a client was shown"
        await self._read_until(lambda: self.account.tokens >= count, what, seconds_max)

    async def until_end(self, seconds_max: float = 10.0) -> None:
        """Reads until the request has ended there. Raises CommandFailed if it has not in time."""
        what = "the end of an answer that a client was shown whole"
        await self._read_until(lambda: self.account.ended, what, seconds_max)

    async def _read_until(self, done: Callable[[], bool], what: str, seconds_max: float) -> None:
        try:
            async with asyncio.timeout(seconds_max):
                while not done():
                    for record in await self._tail.read(max_wait_seconds=0.5):
                        self.account.feed(decode_reply(record.value))
        except TimeoutError:
            raise CommandFailed(f"{self._name} does not hold {what}") from None

    async def close(self) -> None:
        """Lets go of the log."""
        await self._tail.close()
