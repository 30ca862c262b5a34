"""A pipeline without a log: it keeps what was submitted, and answers with events from a list."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS, Limits
from core.stream import Visible, is_terminal
from producer_api.app import make_app
from producer_api.auth import ApiKeys
from producer_api.streams import ClientGone, Sink
from producer_api.submission import Draft, IdempotencyKey, Snapshot, Submission, snapshot_of
from producer_api.worker_directory import ModelEntry
from runtime.metrics import Metrics
from schemas.replies import Accepted, Finished, Tokens, TokenUsage
from schemas.requests import RequestInfo

REQUEST_ID = "01900000-0000-7000-8000-000000000001"
ID_MS = 0x0190_0000_0000
KEY = "key-of-tenant-a"
OTHER_KEY = "key-of-tenant-b"
MODEL = "scripted"


class FakeStream:
    """The part of a reply stream that answers use."""

    def __init__(self, batches: Sequence[Sequence[Visible]]) -> None:
        self.request_id = REQUEST_ID
        self.position = 0
        self.ended = False
        self.closed = False
        self._batches = [list(batch) for batch in batches]
        self._gone = False
        self._woken = asyncio.Event()

    def add(self, batch: Sequence[Visible]) -> None:
        """More of the answer, while somebody may be waiting."""
        self._batches.append(list(batch))
        self._woken.set()

    def abandon(self) -> None:
        self._gone = True
        self._woken.set()

    async def next(self, timeout_seconds: float) -> list[Visible]:
        await asyncio.sleep(0)
        if not self._batches:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), timeout_seconds)
            self._woken.clear()
        if self._gone:
            raise ClientGone("the client closed its connection")
        if not self._batches:
            return []
        fresh: list[Visible] = []
        for event in self._batches.pop(0):
            if isinstance(event, Tokens):
                self.position += len(event.token_ids)
            fresh.append(event)
            self.ended = self.ended or is_terminal(event)
        return fresh

    def hand_over_to(self, sink: Sink) -> None:
        """Everything is given by `next` here."""

    async def close(self) -> None:
        self.closed = True


def tokens(
    count: int, *, text: str = "", choice: int = 0, seq: int = 0, end: bool = False
) -> Tokens:
    """One event of `count` tokens."""
    return Tokens(
        id=REQUEST_ID,
        tenant="a",
        q="requests.default.standard/0",
        offset=7,
        epoch=1,
        seq=seq,
        token_ids=tuple(range(count)),
        text=text,
        choice=choice,
        finish_reason="stop" if end else None,
    )


def finished(count: int) -> Finished:
    """The terminal of an answer of one choice."""
    return Finished(
        id=REQUEST_ID,
        tenant="a",
        q="requests.default.standard/0",
        offset=7,
        epoch=1,
        counts=(count,),
        usage=TokenUsage(prompt_tokens=3, completion_tokens=count),
        finish_reasons=("stop",),
    )


@dataclass
class FakePipeline:
    """Accepts everything that reaches it; only tenant `a` has the one request."""

    batches: list[list[Visible]] = field(default_factory=list)
    submitted: list[Draft] = field(default_factory=list)
    keys: list[IdempotencyKey | None] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    cancelled: list[tuple[str, str]] = field(default_factory=list)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    redeemed: set[str] = field(default_factory=set)
    unready: str | None = None
    refusal: Refusal | None = None
    info: RequestInfo | None = None

    def accepted(self) -> Accepted:
        info = self.info or RequestInfo(endpoint="/v1/completions", model=MODEL, tier="standard")
        return Accepted(id=REQUEST_ID, tenant="a", info=info)

    def check_model(self, name: str) -> ModelEntry:
        if name != MODEL:
            raise Refusal("model_not_found", "There is no such model.", param="model")
        return self.models()[0]

    def models(self) -> list[ModelEntry]:
        return [ModelEntry(MODEL, 8192, "ready", "default", 1000.0)]

    def not_ready(self) -> str | None:
        return self.unready

    async def submit(
        self,
        draft: Draft,
        *,
        idempotency: IdempotencyKey | None = None,
        traceparent: str | None = None,
        followed: bool = True,
    ) -> Submission:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append(draft)
        self.keys.append(idempotency)
        stream = FakeStream([[self.accepted()], *self.batches])
        self.streams.append(stream)
        return Submission(REQUEST_ID, "new", stream)  # type: ignore[arg-type]

    def now_ms(self) -> float:
        return 1000.0 * time.time()

    async def redeem(self, tenant: str, request_id: str, ticket: str) -> bool:
        first = ticket not in self.redeemed
        self.redeemed.add(ticket)
        return first

    async def delete(self, tenant: str, request_id: str) -> None:
        self.deleted.add((tenant, request_id))

    def _check(self, tenant: str, request_id: str) -> None:
        if (tenant, request_id) in self.deleted:
            raise Refusal("not_found", "There is no such request.")
        if tenant != "a" or request_id != REQUEST_ID:
            raise Refusal("not_found", "There is no such request.")

    async def open(self, tenant: str, request_id: str) -> FakeStream:
        self._check(tenant, request_id)
        return FakeStream([[self.accepted()], *self.batches])

    async def resume(self, tenant: str, request_id: str) -> tuple[Snapshot, FakeStream]:
        return await self.status(tenant, request_id), await self.open(tenant, request_id)

    async def status(self, tenant: str, request_id: str) -> Snapshot:
        self._check(tenant, request_id)
        visible = [self.accepted(), *(event for batch in self.batches for event in batch)]
        return snapshot_of(REQUEST_ID, visible, ID_MS, 5.0)

    async def cancel(self, tenant: str, request_id: str, reason: str) -> None:
        self.cancelled.append((tenant, request_id))

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        self.cancelled.append((tenant, request_id))


def client(pipeline: FakePipeline, limits: Limits = DEFAULT_LIMITS) -> httpx.AsyncClient:
    """An HTTP client of the real application before that pipeline; it sends tenant `a`'s key."""
    keys = ApiKeys({KEY: "a", OTHER_KEY: "b"})
    app = make_app(pipeline, keys, limits, Metrics())  # type: ignore[arg-type]
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://test",
        headers={"Authorization": f"Bearer {KEY}"},
    )
