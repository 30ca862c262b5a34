"""Plain tokens of one answer, packed: an event is eight objects, and an answer is made of hundreds.

Kept as they come, they would fill memory that no processor cache holds: a fifth of what a streamed token
cost was to lay such events aside, and to let go of those of earlier answers (docs/performance.md).
"""

import struct
from collections.abc import Iterator

from schemas.replies import Tokens

PACKED_BYTES = 512
"""About what it takes with its containers."""
EVENTS_MAX = 256
"""Python has the integers up to this once and for all: a larger count would be an object for each event."""

_HEAD = struct.Struct("<HHI")  # how many ids, the choice, bytes of text
_ONE = struct.Struct("<HHIq")  # the same with the one id that most events have


def is_plain(event: Tokens) -> bool:
    """Whether it is all said by its ids and its text."""
    return event.logprobs is None and event.finish_reason is None


class PackedTokens:
    """At most `EVENTS_MAX` plain events of one request and epoch, in order, as a reader accepts them.

    So each goes on where the one before it of the same choice ended.
    """

    __slots__ = ("_begins", "_common", "_data", "_epoch", "count")

    def __init__(self, first: Tokens) -> None:
        # not the event: its ids and its text are packed as well
        self._common = (first.id, first.tenant, first.q, first.offset)
        self._epoch = first.epoch
        self.count = 0
        self._begins: dict[int, int] = {}
        self._data = bytearray()

    @property
    def bytes(self) -> int:
        """What all that was taken takes, `PACKED_BYTES` apart."""
        return len(self._data)

    def add(self, event: Tokens) -> bool:
        """Takes a plain event; False: it does not belong here, or there is no room."""
        ids, choice = event.token_ids, event.choice
        if event.epoch != self._epoch or self.count == EVENTS_MAX:
            return False
        text = event.text.encode("utf-8", "surrogatepass")
        try:
            if len(ids) == 1:
                piece = _ONE.pack(1, choice, len(text), ids[0]) + text
            else:
                piece = b"%b%b%b" % (
                    _HEAD.pack(len(ids), choice, len(text)),
                    struct.pack(f"<{len(ids)}q", *ids),
                    text,
                )
        except struct.error:  # no vocabulary has such an id, and no step gives so many
            return False
        if choice not in self._begins:
            self._begins[choice] = event.seq
        self._data += piece
        self.count += 1
        return True

    def events(self) -> Iterator[Tokens]:
        """All that was taken, equal to what it was."""
        request_id, tenant, q, offset = self._common
        seqs, data = dict(self._begins), bytes(self._data)
        at = 0
        while at < len(data):
            count, choice, length = _HEAD.unpack_from(data, at)
            text_at = at + _HEAD.size + 8 * count
            seq = seqs[choice]
            seqs[choice] = seq + count
            yield Tokens(
                id=request_id,
                tenant=tenant,
                q=q,
                offset=offset,
                epoch=self._epoch,
                seq=seq,
                token_ids=struct.unpack_from(f"<{count}q", data, at + _HEAD.size),
                text=data[text_at : text_at + length].decode("utf-8", "surrogatepass"),
                choice=choice,
            )
            at = text_at + length
