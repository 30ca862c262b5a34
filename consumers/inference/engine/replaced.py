"""An engine that is replaced when it dies, so that its worker need not end with it.

A worker whose engine crashed keeps its memberships of the groups, and with them its partitions: a new
engine in the same process goes on sooner than another worker could. What the dead engine ran is lost with
it; the owner is told (`on_lost`) and hands it over again, from the log, once there is an engine (`on_back`).
"""

import asyncio
import logging
from collections.abc import Callable

from consumers.inference.engine.ports import (
    Engine,
    EngineDied,
    ModelInfo,
    ReportHandler,
    Run,
)
from core.runs import Feature

ATTEMPTS_MAX = 5
"""Engines in a row that died, or did not start, after which the process is given up."""
PAUSE_SECONDS_MAX = 10.0
FORGIVEN_AFTER_SECONDS = 60.0

_log = logging.getLogger(__name__)


class ReplacedEngine:
    """See `consumers.inference.engine.ports.Engine`. `make` gives a new engine, not started.

    `away` from a death until the next engine can run; meanwhile runs handed over are dropped, for
    their owner was told. `on_death` of `start` is called only when replacing is given up.
    """

    def __init__(
        self,
        engine: Engine,
        make: Callable[[], Engine],
        on_lost: Callable[[EngineDied], None],
        on_back: Callable[[], None],
    ) -> None:
        self.away = True
        self._engine = engine
        self._make = make
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_reports: ReportHandler | None = None
        self._on_death: Callable[[EngineDied], None] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._deaths = 0
        self._began_s = 0.0

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Of the latest engine that ran."""
        return self._engine.models

    @property
    def slots(self) -> int:
        """0 while there is no engine."""
        return 0 if self.away else self._engine.slots

    @property
    def resumes(self) -> frozenset[Feature]:
        """As the engine's."""
        return self._engine.resumes

    async def start(
        self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]
    ) -> None:
        """The first start is not tried again: what is wrong with it is wrong for good."""
        self._on_reports, self._on_death = on_reports, on_death
        await self._begin(self._engine)

    async def _begin(self, engine: Engine) -> None:
        assert self._on_reports is not None
        early: list[EngineDied] = []

        def died(error: EngineDied) -> None:
            if engine is self._engine and not self.away:
                self._died(error)
            else:
                early.append(error)

        await engine.start(self._on_reports, died)
        if early:
            raise early[0]
        self._engine = engine
        self._began_s = asyncio.get_running_loop().time()
        self.away = False

    def submit(self, run: Run) -> None:
        if not self.away:
            self._engine.submit(run)

    def abort(self, run_id: int) -> None:
        if not self.away:
            self._engine.abort(run_id)

    def step_seconds(self) -> float | None:
        return None if self.away else self._engine.step_seconds()

    async def stop(self) -> None:
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        self.away = True
        await self._engine.stop()

    # --- death and replacement

    def _died(self, error: EngineDied) -> None:
        self.away = True
        if asyncio.get_running_loop().time() - self._began_s >= FORGIVEN_AFTER_SECONDS:
            self._deaths = 0
        self._deaths += 1
        _log.error("the engine died: %s", error)
        self._on_lost(error)
        self._replacing = asyncio.create_task(self._replace(error), name="replace-engine")

    async def _replace(self, error: EngineDied) -> None:
        await _ended(self._engine)
        while self._deaths < ATTEMPTS_MAX:
            # the first at once: sentences are waiting
            await asyncio.sleep(min(PAUSE_SECONDS_MAX, 2.0 ** (self._deaths - 1) - 1))
            engine = self._make()
            try:
                await self._begin(engine)
            except EngineDied as again:
                error = again
                self._deaths += 1
                _log.error("the engine did not start again: %s", again)
                await _ended(engine)
            except BaseException:
                await _ended(engine)
                raise
            else:
                _log.warning("a new engine runs; %s died before it", self._deaths)
                self._on_back()
                return
        if self._on_death is not None:
            self._on_death(EngineDied(f"{self._deaths} engines in a row died; the last: {error}"))


async def _ended(engine: Engine) -> None:
    """Ends what is left of a dead engine; how badly it died does not matter."""
    try:
        await engine.stop()
    except Exception as error:  # noqa: BLE001  whatever it was, the next engine is what counts
        _log.warning("what was left of an engine: %s", type(error).__name__)
