"""Answers that this replica saw to their end, for a while: asking again costs no scan of the log.

What it keeps is what the reader's rule accepted, up to the terminal, so it is what any replica would
read back. It is bounded in bytes and in time, and keyed by tenant and id.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from core.limits import Limits
from core.stream import Key, Visible, is_terminal
from producer_api.packed_tokens import PACKED_BYTES, PackedTokens, is_plain
from runtime.metrics import Metrics
from schemas.replies import Accepted, Started, Tokens
from schemas.requests import RequestInfo

EVENT_BYTES = 512
"""About what an event takes with its id, tenant, origin and containers."""
TOKEN_BYTES = 40
LOGPROB_BYTES = 256
UNPACKED_TIMES = 5
"""Ids and texts that are packed take so many times as much in events: eight bytes are forty."""
GRAIN_BYTES = 512
"""Packed tokens are counted by so much at a time, before they have taken it."""


def size_of(event: Visible) -> int:
    """About how many bytes of memory an event holds."""
    if type(event) is not Tokens:
        return 2 * EVENT_BYTES + _echo_size(event)
    size = EVENT_BYTES + TOKEN_BYTES * len(event.token_ids) + 4 * len(event.text)
    if event.logprobs is not None:
        size += sum(LOGPROB_BYTES * (1 + len(it.top)) for it in event.logprobs)
    return size


def _echo_size(event: Visible) -> int:
    echo = event.info.response if isinstance(event, Accepted | Started) else None
    if echo is None:
        return 0
    pairs = (echo.metadata or {}).items()
    texts = 4 * (len(echo.instructions or "") + sum(len(name) + len(it) for name, it in pairs))
    return texts + 16 * len(str(echo.text_format or ""))


def _is_not_for_keeping(info: RequestInfo) -> bool:
    return info.response is not None and not info.response.store


class Recording:
    """An answer on its way into the cache; `close` it when no more of it will be seen here."""

    __slots__ = (
        "_cache",
        "_packing",
        "_parts",
        "_room",
        "bytes",
        "ends_s",
        "key",
        "unpacked_bytes",
    )

    def __init__(self, cache: "ResultCache", key: Key) -> None:
        self.key = key
        self.bytes = 0
        """About how much memory it takes."""
        self.unpacked_bytes = 0
        """About how much memory each of its readers takes."""
        self._parts: list[Visible | PackedTokens] = []
        self._packing: PackedTokens | None = None
        self._room = 0  # so much of it is counted already
        self.ends_s = 0.0
        self._cache: ResultCache | None = cache

    def add(self, events: Sequence[Visible]) -> None:
        """Takes what was accepted next; with the terminal the answer is in the cache."""
        for event in events:
            if self._cache is None:
                return
            if type(event) is Tokens and is_plain(event) and self._pack(self._cache, event):
                continue
            if isinstance(event, Accepted | Started) and _is_not_for_keeping(event.info):
                self.close()
                return
            self._packing = None
            self._parts.append(event)
            size = size_of(event)
            self.unpacked_bytes += size
            self._cache.grow(self, size)
            if is_terminal(event) and self._cache is not None:
                self._cache.finish(self)

    def _pack(self, cache: "ResultCache", event: Tokens) -> bool:
        """Tokens behind others are packed."""
        packing, new_bytes = self._packing, 0
        if packing is None or not packing.add(event):
            if not (self._parts and type(self._parts[-1]) in (Tokens, PackedTokens)):
                return False  # the first, or the only one
            packing = PackedTokens(event)
            if not packing.add(event):
                return False
            self._packing, self._room = packing, 0
            self._parts.append(packing)
            new_bytes = PACKED_BYTES
        if packing.bytes > self._room:
            # by the grain: what is counted with each event would be three more objects for each
            more = max(GRAIN_BYTES, packing.bytes - self._room)
            self._room += more
            events = more * packing.count // packing.bytes
            self.unpacked_bytes += EVENT_BYTES * events + UNPACKED_TIMES * more
            cache.grow(self, more + new_bytes)
        return True

    async def events(self) -> list[Visible]:
        """All that was taken; others have turns between."""
        found: list[Visible] = []
        for part in list(self._parts):
            if isinstance(part, PackedTokens):
                found += part.events()
                await asyncio.sleep(0)
            else:
                found.append(part)
        return found

    def detach(self) -> None:
        """Takes no more."""
        self._cache = None
        self._packing = None

    def clear(self) -> None:
        """Lets go of what was taken."""
        self._parts.clear()

    def close(self) -> None:
        """Lets go of an answer that has not come to its end. Idempotent."""
        if self._cache is not None:
            self._cache.discard(self)


class ResultCache:
    """(tenant, id) -> the visible events of a finished answer."""

    def __init__(
        self, limits: Limits, metrics: Metrics, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._now_s = now_s
        self._finished: OrderedDict[Key, Recording] = OrderedDict()
        self._recordings: dict[Key, Recording] = {}
        self._bytes = 0
        metrics.result_cache_bytes.set_function(lambda: self._bytes)

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._finished)

    async def get(self, key: Key) -> list[Visible] | None:
        """The whole answer, or None: read it from the log."""
        self.prune()
        found = self._finished.get(key)
        self._metrics.result_cache.labels("miss" if found is None else "hit").inc()
        return None if found is None else await found.events()

    def record(self, key: Key) -> Recording | None:
        """Begins an answer; None if it is here, or on its way, already, or would be kept for no time."""
        if (
            key in self._finished
            or key in self._recordings
            or not self._limits.result_cache_seconds
        ):
            return None
        recording = self._recordings[key] = Recording(self, key)
        return recording

    def grow(self, recording: Recording, size: int) -> None:
        """Counts what a recording took more; the oldest answers, at last itself, make room for it."""
        recording.bytes += size
        self._bytes += size
        while self._bytes > self._limits.result_cache_bytes and self._finished:
            self._evict("bytes")
        too_large = recording.unpacked_bytes > self._limits.result_cache_answer_bytes
        if too_large or self._bytes > self._limits.result_cache_bytes:
            self._metrics.result_cache_evictions.labels("bytes").inc()
            self.discard(recording)

    def finish(self, recording: Recording) -> None:
        """From now on the answer is found."""
        del self._recordings[recording.key]
        recording.detach()
        recording.ends_s = self._now_s() + self._limits.result_cache_seconds
        self._finished[recording.key] = recording
        self.prune()

    def discard(self, recording: Recording) -> None:
        """Forgets an answer on its way."""
        if self._recordings.pop(recording.key, None) is not None:
            recording.detach()
            recording.clear()
            self._bytes -= recording.bytes

    def drop(self, key: Key) -> None:
        """Forgets a request that was deleted, finished or not."""
        if (found := self._finished.pop(key, None)) is not None:
            self._bytes -= found.bytes
        if (running := self._recordings.get(key)) is not None:
            self.discard(running)

    def prune(self) -> None:
        """Forgets what is too old."""
        now_s = self._now_s()
        while self._finished and next(iter(self._finished.values())).ends_s <= now_s:
            self._evict("age")

    def _evict(self, reason: str) -> None:
        _, oldest = self._finished.popitem(last=False)
        self._bytes -= oldest.bytes
        self._metrics.result_cache_evictions.labels(reason).inc()
