"""Workers and an API's pipeline in this process, on the log in memory unless another is given."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from consumers.inference.engine.ports import Engine
from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.limits import DEFAULT_LIMITS, Limits
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.submission import Draft
from runtime.metrics import Metrics
from schemas.codec import decode_fence, decode_reply, decode_worker
from schemas.fences import FenceRecord
from schemas.replies import AnyEvent, Events, Tokens
from schemas.requests import CHAT, Body, Deadlines, Message
from topics.catalogue import FENCES, REPLIES, WORKERS, TopicSettings, catalogue
from topics.memory import MemoryLog
from topics.ports import Log, Partition

POOL = "mem"


def scripted_answer(prompt: str, count: int) -> str:
    """What the scripted engine says."""
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{mark}.{index} " for index in range(count))


class MemoryStack:
    """`start`, then `ask` and `read`; `worker` adds workers. Everything is ended by `stop`."""

    def __init__(
        self, log: Log | None = None, limits: Limits = DEFAULT_LIMITS, pool: str = POOL
    ) -> None:
        self.log = log or MemoryLog()
        self.pool = pool
        self.limits = limits
        self.workers: list[InferenceService] = []
        self.api = Pipeline(self.log, limits, Metrics())

    async def start(self, settings: TopicSettings | None = None) -> "MemoryStack":
        await self.log.create(catalogue(self.pool, settings or TopicSettings()))
        return self

    async def worker(
        self,
        *options: str,
        name: str = "w",
        session_seconds: float = 10.0,
        make_engine: Callable[[], Engine] | None = None,
        log: Log | None = None,
        **more: Any,
    ) -> InferenceService:
        settings = WorkerSettings(
            pool=self.pool,
            engine="scripted",
            engine_option=options,
            worker_id=name,
            session_timeout_seconds=session_seconds,
            limits=self.limits,
            **more,
        )
        service = InferenceService(settings, log=log or self.log)
        if make_engine is not None:
            service._engine._make = make_engine
        self.workers.append(service)
        await service.start()
        async with asyncio.timeout(20):
            while not service.owns_all():
                await asyncio.sleep(0.01)
        return service

    async def open_api(self) -> None:
        await self.api.start()

    async def ask(
        self,
        prompt: str,
        max_tokens: int = 16,
        *,
        tenant: str = "one",
        start_seconds: float | None = None,
    ) -> str:
        """Submits and returns the request id."""
        deadlines = Deadlines(
            start_seconds=start_seconds or self.limits.start_seconds,
            first_token_seconds=self.limits.first_token_seconds,
            total_seconds=self.limits.total_seconds,
        )
        draft = Draft(
            tenant=tenant,
            tier="standard",
            model="scripted",
            endpoint=CHAT,
            body=Body(messages=(Message(role="user", content=prompt),), max_tokens=max_tokens),
            deadlines=deadlines,
        )
        submission = await self.api.submit(draft)
        await submission.stream.close()
        return submission.request_id

    async def read(self, request_id: str, seconds: float = 20.0) -> list[Visible]:
        """The whole answer, up to its terminal."""
        stream = await self.api.open("one", request_id)
        found: list[Visible] = []
        try:
            async with asyncio.timeout(seconds):
                while not (found and is_terminal(found[-1])):
                    found += await stream.next(1.0)
        finally:
            await stream.close()
        return found

    def fences(self) -> list[FenceRecord]:
        assert isinstance(self.log, MemoryLog)
        return [decode_fence(it.value) for it in self.log.records(Partition(FENCES, 0))]

    def events(self) -> list[AnyEvent]:
        """Everything that was ever said, valid or not, by partition."""
        assert isinstance(self.log, MemoryLog)
        found: list[AnyEvent] = []
        for index in range(self.log.size(REPLIES)):
            for record in self.log.records(Partition(REPLIES, index)):
                reply = decode_reply(record.value)
                if isinstance(reply, Events):
                    found += reply.events
        return found

    def announced(self) -> list[str]:
        """The states in which models were announced, in order."""
        assert isinstance(self.log, MemoryLog)
        values = [it.value for it in self.log.records(Partition(WORKERS, 0)) if it.value]
        return [model.state for value in values for model in decode_worker(value).models]

    async def stop(self) -> None:
        if isinstance(self.log, MemoryLog):
            self.log.start()
        await self.api.stop()
        await asyncio.gather(*(it.stop(drain=False) for it in self.workers))


def text_of(found: Sequence[Visible]) -> str:
    return "".join(it.text for it in found if isinstance(it, Tokens))
