"""The body of a request whose head offers an upgrade, as a parser of its own reads it.

The first parser stops behind such a head. So the second is told the little of it that says how long the body
is, and then the body; its connection takes no other request.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

_FRAMING = (b"content-length", b"transfer-encoding")


def head_of_body(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head that frames the body as these headers do, and says nothing else."""
    lines = [b": ".join(pair) + b"\r\n" for pair in headers if pair[0] in _FRAMING]
    return b"".join([b"POST / HTTP/1.1\r\n", *lines, b"\r\n"])


@dataclass(frozen=True, slots=True)
class LastBody:
    """What httptools calls with parts of the body, and at its end."""

    on_body: Callable[[bytes], None]
    on_message_complete: Callable[[], None]
