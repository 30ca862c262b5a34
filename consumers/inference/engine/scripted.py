"""A deterministic engine without a model: for tests, demonstrations and measuring what we add.

Token i of a prompt is the text `a1b2c3.i ` (with the space), token id i, where `a1b2c3` are the first
six hex digits of the SHA-256 of the prompt's text (chat: the contents of the messages, joined by
newlines). An answer has as many tokens as `max_tokens` says (16 if it says nothing), unless a stop
string ends it. Prompt tokens are the prompt's words. Every choice of a request is the same.
`response_format` is refused; sampling parameters have no effect, for nothing is sampled.
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from consumers.inference.engine.ports import (
    FEATURES,
    EngineDied,
    Feature,
    ModelInfo,
    Report,
    ReportHandler,
    Run,
    RunEnded,
)
from consumers.inference.engine.scripted_stream import Stream
from schemas.replies import ErrorInfo

ALL = 1 << 62
STREAMS_AT_ONCE = 128
"""So many streams of a step are taken forward in one turn of the loop, as vLLM does it: all 1,000 of a
large batch in one would keep everything else waiting for tens of milliseconds."""
_EARLY_S = 0.001  # a timer may fire up to the resolution of its clock too early


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedOptions:
    """`fail` may be given several times; each entry is one of:

    - `die_after:N`: the engine dies in place of its N-th step (counted from 1);
    - `die_on:TEXT`: it dies in the first step of a run whose prompt contains TEXT;
    - `kill_on:TEXT`: the whole process is killed (SIGKILL) in the first step of such a run;
    - `error:TEXT`: such a run ends with `engine_failed`;
    - `stall:TEXT`: such a run holds its slot and never says anything.
    """

    tokens_per_second: float = 0.0
    """Of each stream; 0: the whole answer in one step, as soon as it may begin."""
    ttft_ms: float = 0.0
    """From the moment a run has a slot to its first token."""
    slots: int = 64
    """Runs at once; more wait in order."""
    context_tokens: int = 131_072
    """A prompt and its `max_tokens` must fit in."""
    fail: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens_per_second < 0 or self.ttft_ms < 0:
            raise ValueError("tokens_per_second and ttft_ms must not be negative")
        if self.slots < 1 or self.context_tokens < 1:
            raise ValueError("slots and context_tokens must be at least 1")
        for entry in self.fail:
            kind, _, value = entry.partition(":")
            if kind not in ("die_after", "die_on", "kill_on", "error", "stall") or not value:
                raise ValueError(
                    f"fail={entry}: use die_after:N, die_on:TEXT, kill_on:TEXT, error:TEXT or "
                    "stall:TEXT"
                )
            if kind == "die_after" and not (value.isdecimal() and int(value) > 0):
                raise ValueError(f"fail={entry}: N must be a number from 1")

    def failing(self, kind: str) -> tuple[str, ...]:
        """The values of all `fail` entries of this kind."""
        split = [entry.partition(":") for entry in self.fail]
        return tuple(value for name, _, value in split if name == kind)


class ScriptedEngine:
    """One timer steps all streams; the reports of a step leave in one call for every 128 streams."""

    resumes: frozenset[Feature] = FEATURES  # nothing is sampled, so nothing looks back

    def __init__(self, model: str = "scripted", options: ScriptedOptions | None = None) -> None:
        self.options = options or ScriptedOptions()
        self.models: tuple[ModelInfo, ...] = (ModelInfo(model, self.options.context_tokens),)
        self.slots = self.options.slots
        self._streams: dict[int, Stream] = {}
        self._stalled: dict[int, Stream] = {}
        # bounded by the caller, who starts hardly more runs than there are slots
        self._waiting: deque[Stream] = deque()
        self._refused: list[RunEnded] = []
        self._on_reports: ReportHandler | None = None
        self._on_death: Callable[[EngineDied], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        pace = self.options.tokens_per_second
        self._interval_s = 1.0 / pace if pace else 0.0
        self._rest: deque[Stream] = deque()  # of the step under way
        self._rest_tokens = 0
        self._began_s = 0.0
        self._planned_s = 0.0
        self._next_step_s = 0.0
        self._steps = 0
        self._step_seconds: float | None = None
        self._die_after = min(map(int, self.options.failing("die_after")), default=0)
        self._die_on = self.options.failing("die_on")
        self._kill_on = self.options.failing("kill_on")
        self._error_on = self.options.failing("error")
        self._stall_on = self.options.failing("stall")

    async def start(
        self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]
    ) -> None:
        """Nothing is loaded: ready at once."""
        self._loop = asyncio.get_running_loop()
        self._on_reports = on_reports
        self._on_death = on_death

    def submit(self, run: Run) -> None:
        """Takes a run; its first report comes no earlier than the loop's next turn."""
        if self._loop is None:
            return  # died or stopped: whoever started the run was told, or no longer listens
        stream = Stream(run)
        error = self._refusal(run, stream)
        if error is not None:
            self._refused.append(RunEnded(run.run_id, stream.words, 0, error))
        else:
            self._waiting.append(stream)
            self._fill(self._loop.time())
        self._schedule(self._loop)

    def abort(self, run_id: int) -> None:
        """Frees the slot of a run."""
        if self._loop is None:
            return
        found = self._streams.pop(run_id, None) or self._stalled.pop(run_id, None)
        if found is None:
            self._waiting = deque(s for s in self._waiting if s.run_id != run_id)
            self._refused = [ended for ended in self._refused if ended.run_id != run_id]
        self._fill(self._loop.time())
        self._schedule(self._loop)

    async def stop(self) -> None:
        """Forgets all runs; nothing is reported afterwards."""
        self._end()

    def step_seconds(self) -> float | None:
        """The time between two tokens of a stream; at full speed how long the latest step took."""
        return self._interval_s or self._step_seconds

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None
        self._streams.clear()
        self._rest.clear()
        self._stalled.clear()
        self._waiting.clear()
        self._refused.clear()

    def _refusal(self, run: Run, stream: Stream) -> ErrorInfo | None:
        model = self.models[0]
        if run.model != model.name:
            message = f"This engine serves {model.name!r}, not the model that was asked for."
            return ErrorInfo(code="model_not_found", message=message, param="model")
        if run.body.response_format is not None:
            message = "The scripted engine cannot follow a response_format; leave it out."
            return ErrorInfo(code="unsupported_parameter", message=message, param="response_format")
        needed = stream.words + stream.end
        if needed > model.context_tokens:
            message = (
                f"The context of {model.name!r} is {model.context_tokens} tokens; this request "
                f"needs {needed}: {stream.words} in the prompt and {stream.end} for the "
                "answer. Shorten the prompt or lower max_tokens."
            )
            return ErrorInfo(code="context_length_exceeded", message=message)
        if any(text in stream.prompt for text in self._error_on):
            return ErrorInfo(code="engine_failed", message="The engine failed on this request.")
        return None

    def _fill(self, now_s: float) -> None:
        """Moves waiting runs into free slots."""
        while self._waiting and len(self._streams) + len(self._stalled) < self.slots:
            stream = self._waiting.popleft()
            stream.first_at_s = now_s + self.options.ttft_ms / 1000
            stalls = any(text in stream.prompt for text in self._stall_on)
            (self._stalled if stalls else self._streams)[stream.run_id] = stream

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Plans the next step, unless one is planned: runs of one loop turn share a step."""
        if self._timer is not None:
            if not self._refused:
                return
            self._timer.cancel()  # a refusal is said at once
            self._timer = None
        at_once = self._refused or self._rest
        if at_once or (self._streams and not (self._interval_s or self.options.ttft_ms)):
            self._planned_s = loop.time()
            self._timer = loop.call_soon(self._step, loop)
        elif self._streams:
            first_at_s = min(stream.first_at_s for stream in self._streams.values())
            self._planned_s = max(self._next_step_s, first_at_s)
            self._timer = loop.call_at(self._planned_s, self._step, loop)

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        """A step, or the next part of one that is under way."""
        self._timer = None
        reports: list[Report] = [*self._refused]
        self._refused.clear()
        if not self._rest and not self._begin(loop.time()):
            self._end()
            if self._on_death is not None:
                self._on_death(EngineDied("the scripted engine died, as its options say"))
            return
        if self._rest:
            self._advance(reports)
            if not self._rest:
                now_s = loop.time()
                self._step_seconds = now_s - self._began_s
                self._fill(now_s)
        self._schedule(loop)
        if reports and self._on_reports is not None:
            self._on_reports(reports)

    def _begin(self, now_s: float) -> bool:
        """Whose turn it is, and for how many tokens; False if the engine dies instead."""
        self._began_s, self._rest_tokens = now_s, self._tokens_due(now_s)
        ready = [s for s in self._streams.values() if s.first_at_s <= now_s + _EARLY_S]
        if not (self._rest_tokens and ready):
            return True
        self._steps += 1
        self._rest.extend(ready)
        return not self._dies(ready)

    def _advance(self, reports: list[Report]) -> None:
        for _ in range(min(STREAMS_AT_ONCE, len(self._rest))):
            stream = self._rest.popleft()
            if self._streams.get(stream.run_id) is not stream:
                continue  # aborted since the step began
            if stream.advance(self._rest_tokens, reports):
                del self._streams[stream.run_id]

    def _tokens_due(self, now_s: float) -> int:
        """How many tokens each stream gets now; more than one if the loop was late."""
        if not self._interval_s:
            return ALL
        if now_s < self._next_step_s - _EARLY_S:
            return 0  # woken for a refusal only
        tokens = 1 + max(0, int((now_s - self._planned_s) / self._interval_s))
        self._next_step_s = self._planned_s + tokens * self._interval_s
        return tokens

    def _dies(self, ready: list[Stream]) -> bool:
        if any(text in stream.prompt for text in self._kill_on for stream in ready):
            os.kill(os.getpid(), signal.SIGKILL)  # no last word, as a crash in native code
        if self._steps == self._die_after:
            return True
        return any(text in stream.prompt for text in self._die_on for stream in ready)
