"""What a path and a cursor name: a request, an event of its stream."""

from core.errors import Refusal
from schemas.ids import bare_request_id


def request_id_of(text: str) -> str:
    """The bare id of any form. Raises Refusal `not_found`."""
    try:
        return bare_request_id(text)
    except ValueError:
        raise Refusal("not_found", "There is no such request.") from None


def cursor_of(last_event_id: str | None, starting_after: str | None) -> int | None:
    """`Last-Event-ID`, else `starting_after`; None if neither is given. Raises Refusal."""
    text = last_event_id or starting_after
    if not text:
        return None
    if not text.isdecimal() or not text.isascii() or len(text) > 9:
        raise Refusal(
            "invalid_request",
            "'Last-Event-ID' and 'starting_after' are the id of an event of this stream.",
            param="starting_after",
        )
    return int(text)
