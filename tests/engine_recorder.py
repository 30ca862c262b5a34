"""What tests see of an engine: every call of its report handler, and runs awaited to their end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from consumers.inference.engine.ports import (
    Engine,
    EngineDied,
    Logged,
    Output,
    Report,
    Run,
    RunEnded,
)
from core.text import StopScanner
from schemas.replies import FinishReason
from schemas.requests import COMPLETIONS, Body

_RUN_IDS = count(1)


@dataclass
class Answer:
    """One run, put together from its reports."""

    run_id: int
    outputs: list[Output] = field(default_factory=list)
    ended: RunEnded | None = None

    def ids(self, choice: int = 0) -> tuple[int, ...]:
        return tuple(i for out in self.outputs if out.choice == choice for i in out.token_ids)

    def text(self, choice: int = 0) -> str:
        return "".join(out.text for out in self.outputs if out.choice == choice)

    def reason(self, choice: int = 0) -> FinishReason | None:
        reasons = [out.finish_reason for out in self.outputs if out.choice == choice]
        assert all(reason is None for reason in reasons[:-1])
        return reasons[-1] if reasons else None


class EngineRecorder:
    """Holds an engine and all it ever reported."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[list[Report]] = []
        self.answers: dict[int, Answer] = {}
        self.deaths: list[EngineDied] = []
        self._changed = asyncio.Event()

    async def start(self) -> "EngineRecorder":
        await self.engine.start(self._on_reports, self._on_death)
        return self

    def submit(self, body: Body, logged: tuple[Logged, ...] = (), **fields: Any) -> int:
        run_id = next(_RUN_IDS)
        self.answers[run_id] = Answer(run_id)
        named = {"model": self.engine.models[0].name, "endpoint": COMPLETIONS, **fields}
        self.engine.submit(Run(run_id, f"request-{run_id}", body=body, logged=logged, **named))
        return run_id

    async def ended(self, run_id: int) -> Answer:
        answer = self.answers[run_id]
        await self.until(lambda: answer.ended is not None or bool(self.deaths))
        return answer

    async def run(self, body: Body, logged: tuple[Logged, ...] = (), **fields: Any) -> Answer:
        return await self.ended(self.submit(body, logged, **fields))

    async def until(self, true: Any, seconds: float = 25.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def _on_reports(self, reports: Sequence[Report]) -> None:
        self.calls.append(list(reports))
        for report in reports:
            answer = self.answers[report.run_id]
            assert answer.ended is None, "a report after the end of its run"
            if isinstance(report, RunEnded):
                answer.ended = report
            else:
                answer.outputs.append(report)
        self._changed.set()

    def _on_death(self, died: EngineDied) -> None:
        self.deaths.append(died)
        self._changed.set()


async def logged_at(recorder: EngineRecorder, body: Body, cut: int, stops: Sequence[str]) -> Logged:
    """What the log would hold of the first `cut` tokens, with what `stops` withhold."""
    if cut == 0:
        return Logged()
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    first = await recorder.run(Body(**fields | {"max_tokens": cut, "stop": ()}))
    assert len(first.ids()) == cut
    return Logged(first.ids(), StopScanner(stops).feed(first.text())[0])
