"""The engine as the worker sees it: start runs, get outputs by step, abort.

The engine decides which tokens run; the scheduler decides which request enters. A run may go on from
tokens that an earlier run logged; the two together must read as one answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.errors import InferlogError
from core.runs import FEATURES, Feature, Logged, Output, Report, Run, RunEnded

__all__ = [
    "FEATURES",
    "Engine",
    "EngineDied",
    "Feature",
    "Logged",
    "ModelInfo",
    "Output",
    "Report",
    "ReportHandler",
    "Run",
    "RunEnded",
]


ReportHandler = Callable[[Sequence[Report]], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that this engine serves."""

    name: str
    context_tokens: int


class EngineDied(InferlogError):
    """The engine is gone with everything it ran; only a new engine helps."""


class Engine(Protocol):
    """One engine in the worker's process (or beside it).

    All methods are called from one event loop; reports arrive on the same loop, all reports of one
    step in one call, never after the run's `RunEnded`, never after `abort` of that run returned.
    """

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves; known once it has started."""
        ...

    @property
    def slots(self) -> int:
        """Runs at once."""
        ...

    @property
    def resumes(self) -> frozenset[Feature]:
        """What a run that goes on from logged tokens continues faithfully; known once it has started.

        A run that asks for more, or whose logged tokens turn out to be none that this engine could
        have given, ends with the error `interrupted`: two pieces that do not fit are never joined.
        """
        ...

    async def start(
        self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]
    ) -> None:
        """Loads the model; returns when it can run. Raises EngineDied with a clear reason."""
        ...

    def submit(self, run: Run) -> None:
        """Takes a run; never blocks, never raises for a bad request: `RunEnded.error` says so.

        Finish conditions are checked first: a run whose logged tokens already end it (max_tokens,
        end token, stop string) reports its finish with no new token.
        """
        ...

    def abort(self, run_id: int) -> None:
        """Frees the slot of a run; no more reports of it. Unknown or ended runs are ignored."""
        ...

    async def stop(self) -> None:
        """Ends everything it started, child processes too. Idempotent."""
        ...

    def step_seconds(self) -> float | None:
        """How long the latest step took; None if the engine does not say."""
        ...
