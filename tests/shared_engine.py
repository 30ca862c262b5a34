"""One started engine for several workers of one test session: a second start would take half a minute."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from consumers.inference.engine.ports import (
    Engine,
    EngineDied,
    Feature,
    ModelInfo,
    Report,
    ReportHandler,
    Run,
)

STRIDE = 1_000_000
"""Run ids of different workers lie so far apart."""


class BorrowedEngine:
    """What one worker takes for its engine. `kill` makes it silent, as the worker's death would."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.models: tuple[ModelInfo, ...] = engine.models
        self.slots: int = engine.slots
        self.resumes: frozenset[Feature] = engine.resumes
        self.submitted: list[Run] = []
        self._engine = engine
        self._base = number * STRIDE
        self._on_reports: ReportHandler | None = None

    async def start(
        self,
        on_reports: ReportHandler,
        on_death: Callable[[EngineDied], None],
    ) -> None:
        self._on_reports = on_reports

    def submit(self, run: Run) -> None:
        self.submitted.append(run)
        self._engine.submit(replace(run, run_id=self._base + run.run_id))

    def abort(self, run_id: int) -> None:
        self._engine.abort(self._base + run_id)

    async def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._on_reports = None
        for run in self.submitted:
            self.abort(run.run_id)

    def step_seconds(self) -> float | None:
        return self._engine.step_seconds()

    def hear(self, reports: Sequence[Report]) -> None:
        """All reports of a step; of other workers' runs too."""
        ids = range(self._base, self._base + STRIDE)
        ours = [replace(it, run_id=it.run_id - self._base) for it in reports if it.run_id in ids]
        if ours and self._on_reports is not None:
            self._on_reports(ours)


class Lender:
    """Hands a real engine's reports to whoever started the run. Give it back with `close`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._before: ReportHandler = engine._on_reports
        self._lent: list[BorrowedEngine] = []
        engine._on_reports = self._hear

    def lend(self) -> BorrowedEngine:
        borrowed = BorrowedEngine(self._engine, len(self._lent) + 1)
        self._lent.append(borrowed)
        return borrowed

    def close(self) -> None:
        for borrowed in self._lent:
            borrowed.kill()
        self._engine._on_reports = self._before

    def _hear(self, reports: Sequence[Report]) -> None:
        own = [it for it in reports if it.run_id < STRIDE]
        if own:
            self._before(own)
        for borrowed in self._lent:
            borrowed.hear(reports)
