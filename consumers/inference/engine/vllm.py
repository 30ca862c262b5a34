"""vLLM as the worker's engine: runs in, reports out, with the model in a process of its own.

Each choice of a run is a request of its own to vLLM, so that each can be resumed on its own. What
vLLM gives in one turn of its output loop leaves in one call.

The engine's process is spawned: a program that makes this engine must be importable without side
effects (`if __name__ == "__main__"`); pytest and the `inferlog` command are.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from consumers.inference.engine.ports import (
    EngineDied,
    Feature,
    ModelInfo,
    Report,
    ReportHandler,
    Run,
    RunEnded,
)
from consumers.inference.engine.schema_checks import SchemaChecks
from consumers.inference.engine.vllm_choice import Choice
from consumers.inference.engine.vllm_process import VllmProcess
from consumers.inference.engine.vllm_requests import (
    Prepared,
    Preparer,
    compilers_for,
    sampling_params,
)
from consumers.inference.engine.vllm_seams import Seams
from core.errors import Refusal
from core.limits import Limits
from schemas.replies import ErrorInfo

log = logging.getLogger(__name__)

MESSAGE_CHARS = 200


@dataclass(slots=True)
class _Running:
    """A run between `submit` and its `RunEnded` or `abort`. `open`: choices that go on."""

    run: Run
    task: asyncio.Task[None] | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    open: dict[int, Choice] = field(default_factory=dict)


class VllmEngine:
    """`models` is known once it has started."""

    def __init__(self, arguments: AsyncEngineArgs, name: str, limits: Limits) -> None:
        self.models: tuple[ModelInfo, ...] = ()
        self.slots: int = arguments.max_num_seqs or 0
        self.resumes: frozenset[Feature] = frozenset()
        self._name = name
        self._limits = limits
        self._seams = Seams()
        self._process = VllmProcess(arguments)
        self._preparer: Preparer | None = None
        # one thread: a tokenizer is not made for two at once
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._schemas = SchemaChecks(limits.schema_compile_seconds, self._vocabulary)
        # bounded by the caller, who starts no more runs than there are slots
        self._runs: dict[int, _Running] = {}
        self._said: list[tuple[Choice, Any] | Report] = []
        self._flushing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended_for_good = False
        self._on_reports: ReportHandler | None = None
        self._on_death: Callable[[EngineDied], None] | None = None
        self._last_flush_s: float | None = None
        self._step_seconds: float | None = None

    async def start(
        self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]
    ) -> None:
        """Loads the model in its own process: seconds to minutes. Raises EngineDied."""
        self._on_reports = on_reports
        self._on_death = on_death
        process = self._process
        await process.load()
        self.models, self.slots = (ModelInfo(self._name, process.context_tokens),), process.slots
        tokens = (process.context_tokens, self._limits.max_tokens_default)
        self._preparer = Preparer(process.tokenizer, self._name, *tokens, process.end_ids())
        self._seams = await asyncio.to_thread(process.seams, self._limits.schema_compile_seconds)
        self.resumes = self._seams.resumes
        self._spawn(self._watch())

    def submit(self, run: Run) -> None:
        """Takes a run; its first report comes no earlier than the loop's next turn."""
        if self._ended_for_good or self._preparer is None:
            return  # whoever started the run was told of the end, or no longer listens
        running = _Running(run)
        self._runs[run.run_id] = running
        running.task = self._spawn(self._begin(running, self._preparer))

    def abort(self, run_id: int) -> None:
        """Frees the slot of a run, in vLLM a moment later."""
        running = self._runs.pop(run_id, None)
        if running is None:
            return
        if running.task is not None:
            running.task.cancel()
        self._abort_choices([*running.open.values()])

    async def stop(self) -> None:
        """Ends vLLM's process; nothing is reported afterwards."""
        self._ended_for_good = True
        self._runs.clear()
        self._said.clear()
        for task in (tasks := [*self._tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._schemas.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._seams.close()
        await self._process.stop()

    def step_seconds(self) -> float | None:
        """The time between the latest two steps that had anything to report."""
        return self._step_seconds

    # --- from a run to vLLM

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _begin(self, running: _Running, preparer: Preparer) -> None:
        """Total: every failure becomes the end of the run, or of the engine."""
        run = running.run
        try:
            if run.model != self._name:
                message = f"This engine serves {self._name!r}, not the model that was asked for."
                raise Refusal("model_not_found", message, param="model")  # noqa: TRY301
            in_pool = asyncio.get_running_loop().run_in_executor
            prepared = await in_pool(self._pool, preparer.prepare, run)
            if (wanted := run.body.response_format) is not None and wanted.schema is not None:
                await self._schemas.check(wanted.schema, compilers_for(wanted.schema))
            await self._seams.prepare(run, prepared.choices)
            await self._hand_over(running, prepared)
        except Refusal as refusal:
            self._end(running, refusal.info())
        except EngineDeadError as error:
            self._die(error)
        except (ValueError, VLLMClientError) as error:
            parameter = getattr(error, "parameter", None)
            message = f"The engine refuses this request: {str(error)[:MESSAGE_CHARS]}"
            self._end(running, ErrorInfo(code="invalid_request", message=message, param=parameter))
        except Exception as error:  # noqa: BLE001 a request must never hang, whatever fails
            log.error("a run could not be started: %s", type(error).__name__)  # noqa: TRY400 no prompt
            self._end(running, _failed())

    async def _vocabulary(self) -> dict[str, Any]:
        in_pool = asyncio.get_running_loop().run_in_executor
        return await in_pool(self._pool, self._process.vocabulary)

    async def _hand_over(self, running: _Running, prepared: Prepared) -> None:
        run = running.run
        running.prompt_tokens = prepared.prompt_tokens
        running.open = {c.index: c for c in prepared.choices if c.ended is None}
        for choice in (c for c in prepared.choices if c.ended is not None):
            self._say(choice.closing())
        if not running.open:
            self._end(running, None)
        for choice in [*running.open.values()]:
            choice.internal_id = await self._process.add(
                f"{run.request_id}-{run.run_id}-{choice.index}",
                choice.prompt_ids,
                sampling_params(run.body, choice, prepared.max_tokens),
                run.cache_salt,
                partial(self._take, choice),
            )
            choice.prompt_ids = []

    def _abort_choices(self, choices: list[Choice]) -> None:
        self._process.abort([c.internal_id for c in choices if c.internal_id is not None])

    # --- from vLLM to reports

    def _take(self, choice: Choice, output: Any) -> None:
        """Stands in for the collector's `put`: called by vLLM's output loop, on our event loop."""
        self._say((choice, output))

    def _say(self, said: tuple[Choice, Any] | Report) -> None:
        self._said.append(said)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        said, self._said = self._said, []
        reports: list[Report] = []
        stopped: list[Choice] = []
        for item in said:
            if isinstance(item, tuple):
                self._output(item[0], item[1], reports, stopped)
            elif item.run_id in self._runs:
                reports.append(item)
                if isinstance(item, RunEnded):
                    del self._runs[item.run_id]
        if stopped:
            self._abort_choices(stopped)
        self._time_step()
        if reports and self._on_reports is not None:
            self._on_reports(reports)

    def _output(
        self, choice: Choice, output: Any, reports: list[Report], stopped: list[Choice]
    ) -> None:
        running = self._runs.get(choice.run_id)
        if running is None or running.open.get(choice.index) is not choice:
            return  # aborted, or ended by a stop string; vLLM says so once more
        if isinstance(output, Exception):
            self._failed_in_vllm(running, output, reports)
            return
        completion = output.outputs[0]
        reason = completion.finish_reason
        if reason not in (None, "stop", "length"):
            self._failed_in_vllm(running, RuntimeError(f"finish reason {reason}"), reports)
            return
        if running.cached_tokens is None:
            # of the first choice to speak: the others find its prompt in the cache
            running.cached_tokens = output.num_cached_tokens or 0
        if choice.follower is not None and not choice.follower.accepts(completion.token_ids):
            self._failed_in_vllm(running, RuntimeError("a token against the grammar"), reports)
            return
        report = choice.advance(completion.token_ids, reason, completion.logprobs)
        reports.append(report)
        if choice.ended is None:
            return
        if reason is None:
            stopped.append(choice)
        del running.open[choice.index]
        if not running.open:
            del self._runs[choice.run_id]
            reports.append(self._ended(running, None))

    def _failed_in_vllm(self, running: _Running, error: Exception, reports: list[Report]) -> None:
        if isinstance(error, EngineDeadError):
            self._die(error)
            return
        log.error("vLLM failed on a run: %s", type(error).__name__)
        del self._runs[running.run.run_id]
        self._abort_choices([*running.open.values()])
        reports.append(self._ended(running, _failed()))

    def _end(self, running: _Running, error: ErrorInfo | None) -> None:
        self._abort_choices([*running.open.values()])
        running.open = {}
        self._say(self._ended(running, error))

    @staticmethod
    def _ended(running: _Running, error: ErrorInfo | None) -> RunEnded:
        # logged tokens, given back as prompt, may be cached as well; they are no prompt tokens
        cached = min(running.cached_tokens or 0, running.prompt_tokens)
        return RunEnded(running.run.run_id, running.prompt_tokens, cached, error)

    def _time_step(self) -> None:
        now_s = time.monotonic()
        if self._last_flush_s is not None:
            self._step_seconds = now_s - self._last_flush_s
        # the time until the next run comes is no step
        self._last_flush_s = now_s if self._runs else None

    # --- death

    async def _watch(self) -> None:
        await self._process.died()
        self._die(EngineDeadError())

    def _die(self, error: Exception) -> None:
        if self._ended_for_good:
            return
        self._ended_for_good = True
        self._runs.clear()
        self._said.clear()
        if self._on_death is not None:
            self._on_death(EngineDied(f"vLLM's process is gone: {str(error)[:MESSAGE_CHARS]}"))


def _failed() -> ErrorInfo:
    return ErrorInfo(code="engine_failed", message="The engine failed on this request.")
