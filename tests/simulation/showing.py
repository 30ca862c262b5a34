"""What of an answer a client is shown: the real renderer decides, and its frames are read back."""

from dataclasses import dataclass

import orjson

from core.stream import Visible
from producer_api.rendering import ChunkRenderer
from schemas.replies import Accepted, Cancelled, Expired, Failed, Finished, Started, Tokens
from schemas.requests import RequestInfo
from tests.checker.history import SeenTokens

KINDS = {Finished: "finished", Failed: "failed", Cancelled: "cancelled", Expired: "expired"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens, with the position after them."""

    tokens: SeenTokens
    position: int


@dataclass(frozen=True, slots=True)
class End:
    """A terminal."""

    kind: str
    counts: tuple[int, ...]
    code: str | None


class Showing:
    """One stream from behind the position `after` on; it is given the answer from its beginning."""

    def __init__(self, request_id: str, info: RequestInfo, after: int = 0) -> None:
        self._renderer = ChunkRenderer(request_id, info, after)
        self._after = after

    def items(self, events: list[Visible]) -> list[Chunk | End]:
        """What goes to the client for these events."""
        shown = (self._chunk(it) if isinstance(it, Tokens) else _end(it) for it in events)
        return [it for it in shown if it is not None]

    def _chunk(self, event: Tokens) -> Chunk | None:
        text, reason = _read(self._renderer.render([event]))
        position = self._renderer.position
        if event.text:
            told = text != ""
        elif event.token_ids:
            told = position > self._after  # no frame says so: the next one's id does
        else:
            told = reason is not None
        if not told:
            return None
        seen = SeenTokens(event.choice, event.seq, event.token_ids, text, reason)
        return Chunk(seen, position)


def _read(frames: bytes) -> tuple[str, str | None]:
    """The text of the frames, and the reason to finish, if one is there."""
    text, reason = "", None
    for line in frames.split(b"\n"):
        if line.startswith(b"data: "):
            choice = orjson.loads(line[len(b"data: ") :])["choices"][0]
            text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            reason = choice["finish_reason"] or reason
    return text, reason


def _end(event: Visible) -> End | None:
    if isinstance(event, Accepted | Started | Tokens):
        return None
    code = event.error.code if isinstance(event, Failed) else None
    return End(KINDS[type(event)], event.counts, code)
