"""Request ids: a UUIDv7 that says when a request was made and where its answer lies.

Layout (RFC 9562, version 7): 48 bits of Unix milliseconds in broker time, 4 bits version,
12 bits `rand_a` = the reply partition, 2 bits variant, 62 random bits. So any process that is handed
an id knows which partition of `replies` to read and from what time on, with no directory service.
"""

import re
from dataclasses import dataclass

REPLY_PARTITIONS_MAX = 1 << 12
RANDOM_BITS = 62

_PREFIXES = ("chatcmpl-", "cmpl-", "resp_")
_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class IdParts:
    """What an id says: `time_ms` since the epoch in broker time, and the reply partition."""

    time_ms: int
    reply_partition: int


def make_request_id(time_ms: int, reply_partition: int, random_62: int) -> str:
    """Returns the id as lowercase UUID text.

    Raises ValueError if an argument does not fit its field. Randomness is handed in, so that this
    package stays pure.
    """
    if not 0 <= time_ms < 1 << 48:
        raise ValueError(f"time_ms {time_ms} does not fit 48 bits")
    if not 0 <= reply_partition < REPLY_PARTITIONS_MAX:
        raise ValueError(f"reply partition {reply_partition} does not fit 12 bits")
    if not 0 <= random_62 < 1 << RANDOM_BITS:
        raise ValueError("random part does not fit 62 bits")
    number = time_ms << 80 | 7 << 76 | reply_partition << 64 | 2 << 62 | random_62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_request_id(text: str) -> IdParts:
    """Reads an id. Raises ValueError unless it is a lowercase, hyphenated UUIDv7."""
    if not _TEXT.fullmatch(text):
        raise ValueError("a request id is a lowercase UUIDv7")
    return IdParts(int(text[:8] + text[9:13], 16), int(text[15:18], 16))


def bare_request_id(text: str) -> str:
    """Strips `chatcmpl-`, `cmpl-` or `resp_`: every route takes either form.

    Raises ValueError if what remains is not a request id.
    """
    for prefix in _PREFIXES:
        if text.startswith(prefix):
            text = text[len(prefix) :]
            break
    parse_request_id(text)
    return text
