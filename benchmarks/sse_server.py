"""The API before a pipeline without a log: streams are fed by a ticker, as the tail of replies would.

Everything from the mailbox to the socket is the product's. `python -m benchmarks.sse_server KIND PORT
KEY` serves with our response (`ours`) or with sse-starlette's (`sse-starlette`).
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import uvicorn
import uvloop
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from core.limits import DEFAULT_LIMITS
from producer_api import answers
from producer_api.app import listen, make_app
from producer_api.auth import ApiKeys
from producer_api.bounded_http import bounded_http
from producer_api.mailbox import Mailbox
from producer_api.streams import ReplyStream, Source
from producer_api.submission import Draft, Submission
from runtime.metrics import Metrics
from schemas.ids import make_request_id
from schemas.replies import Finished, Tokens, TokenUsage

STEPS_PER_SECOND = 200
AT_ONCE_TOKENS = 16
"""Answers up to this long come in one event, as from an engine that is much faster than the API."""


class TheirStream(EventSourceResponse):
    """sse-starlette's response in the place of ours."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(frames, headers=headers, ping=int(DEFAULT_LIMITS.heartbeat_seconds))
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As theirs, and then lets go of the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._on_end()


class Feed:
    """One stream: its mailbox and how much was said."""

    def __init__(self, box: Mailbox, tokens: int) -> None:
        self.box = box
        self._tokens = tokens
        self._said = 0

    def say(self, count: int) -> bool:
        """Puts the next tokens in; False after the last."""
        tenant, request_id = self.box.key
        common: dict[str, Any] = {
            "id": request_id,
            "tenant": tenant,
            "q": "requests.default.standard/0",
            "offset": 1,
            "epoch": 1,
        }
        seq, self._said = self._said, min(self._tokens, self._said + count)
        ended = self._said == self._tokens
        text = "".join([f"abcdef.{i} " for i in range(seq, self._said)])
        reason = "length" if ended else None
        ids = tuple(range(seq, self._said))
        self.box.put(Tokens(**common, seq=seq, token_ids=ids, text=text, finish_reason=reason))  # type: ignore[arg-type]  # a literal
        if ended:
            usage = TokenUsage(prompt_tokens=5, completion_tokens=self._said)
            counts = (self._said,)
            self.box.put(Finished(**common, counts=counts, usage=usage, finish_reasons=("length",)))
        self.box.wake()
        return not ended


class FedPipeline:
    """The part of a pipeline that the chat route uses."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()
        self._number = 0
        self._feeds: list[Feed] = []

    def check_model(self, name: str) -> None:
        """Any model."""

    async def submit(self, draft: Draft, **_: object) -> Submission:
        """A stream that the ticker feeds from now on."""
        self._number += 1
        request_id = make_request_id(1_700_000_000_000, 0, self._number)
        box = Mailbox((draft.tenant, request_id), 1024, 256 * 1024)
        stream = ReplyStream(box.key, self._shutdown, self._no_source, lambda *_: -60.0, box)
        tokens = draft.body.max_tokens or 1
        feed = Feed(box, tokens)
        if tokens <= AT_ONCE_TOKENS:
            asyncio.get_running_loop().call_soon(feed.say, tokens)
        else:
            self._feeds.append(feed)
        return Submission(request_id, "new", stream)

    def _no_source(self, _: int) -> Source:
        raise AssertionError("a mailbox overflowed: the client is too slow for this pace")

    def cancel_soon(self, tenant: str, request_id: str) -> None:
        """Nothing to cancel."""

    async def tick(self) -> None:
        """One token for every stream, again and again; a late step is not made up for."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + 1 / STEPS_PER_SECOND, loop.time())
            await asyncio.sleep(due_s - loop.time())
            self._feeds = [feed for feed in self._feeds if feed.say(1)]


async def serve(kind: str, port: int, key: str) -> None:
    metrics = Metrics()
    http: Any = bounded_http(DEFAULT_LIMITS, metrics)
    if kind == "sse-starlette":
        vars(answers)["EventStream"] = TheirStream
        http = "httptools"  # under which nothing passes the response
    pipeline = FedPipeline()
    app = make_app(pipeline, ApiKeys({key: "a"}), DEFAULT_LIMITS, metrics)  # type: ignore[arg-type]
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None)
    config.access_log = False
    ticking = asyncio.create_task(pipeline.tick())
    await uvicorn.Server(config).serve([listen("127.0.0.1", port)])
    ticking.cancel()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
