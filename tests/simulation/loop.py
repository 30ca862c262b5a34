"""An event loop without a clock, a socket or a thread: time jumps to the next timer.

Every handle belongs to a simulated process, told by the context it runs in. Within one process the
order is asyncio's own; which process goes next is drawn from a seed. A process can be paused (its
handles are kept until it is woken, as by SIGSTOP and SIGCONT) or killed (they never run again, and
no `finally` of it does, until the world has been looked at and is taken down).
"""

import asyncio
import contextvars
import heapq
import random
import sys
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")

START_S = 1_000.0
EPOCH_MS = 1_767_225_600_000
"""The broker's wall clock at the loop's time 0."""
HANDLES_AT_ONCE_MAX = 200_000
"""More than this at one instant is a loop that never lets time go on."""


class Process:
    """One simulated process. `wall_offset_ms`: how far its wall clock is from the broker's."""

    __slots__ = ("killed", "name", "paused", "ready", "serial", "tag", "wall_offset_ms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.tag = name.encode()
        self.ready: deque[asyncio.Handle] = deque()
        self.paused = False
        self.killed = False
        self.wall_offset_ms = 0
        self.serial = -1

    @property
    def stopped(self) -> bool:
        """True while nothing of it runs."""
        return self.paused or self.killed


PROCESS: "contextvars.ContextVar[Process]" = contextvars.ContextVar("process")


class SimFuture(asyncio.Future[Any]):
    """Hashed by a serial number, so that sets of futures have one order in every run.

    Most are never hashed: the number is drawn when it is asked for.
    """

    _serial = 0

    def __hash__(self) -> int:
        if not self._serial:
            self._serial = cast("SimLoop", self.get_loop()).next_serial()
        return self._serial


class SimTask(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, coro: Any, *, loop: "SimLoop", **more: Any) -> None:
        self._serial = loop.next_serial()
        super().__init__(coro, loop=loop, **more)

    def __hash__(self) -> int:
        return self._serial


class SimHandle(asyncio.Handle):
    """Asyncio's, without what it does for debugging: handles are most of what a run costs."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., Any], args: Any, loop: "SimLoop", context: Any
    ) -> None:
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]  # as asyncio's own


class SimTimer(asyncio.TimerHandle):
    """The same for timers; a cancelled one is passed over when it is due."""

    __slots__ = ()

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., Any],
        args: Any,
        loop: "SimLoop",
        context: Any,
    ) -> None:
        self._when = when_s
        self._scheduled = True
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]  # as asyncio's own


class Stuck(AssertionError):
    """Time did not go on, or went on without an end."""


class SimLoop(asyncio.BaseEventLoop):
    """See the module. `digest` is a checksum of everything that ran, in order."""

    def __init__(self, seed: int) -> None:
        self._closed = False
        super().__init__()
        self.digest = 0
        self.handles_run = 0
        self.unhandled: list[str] = []
        self.processes: list[Process] = []
        self.world = self.process("world")
        self._random = random.Random(f"{seed}/loop")
        self._now_s = START_S
        self._serial = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Process]] = []
        self._active: list[Process] = []
        self._tasks: list[SimTask] = []

    def next_serial(self) -> int:
        """Rising numbers."""
        self._serial += 1
        return self._serial

    # --- processes

    def process(self, name: str) -> Process:
        """A new one, running."""
        process = Process(name)
        self.processes.append(process)
        return process

    def pause(self, process: Process) -> None:
        """SIGSTOP."""
        process.paused = True
        self._deactivate(process)

    def wake(self, process: Process) -> None:
        """SIGCONT: what came in meanwhile, and every timer that is due, runs now."""
        process.paused = False
        if not process.stopped:
            self._activate(process)

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        process.killed = True
        self._deactivate(process)

    def _activate(self, process: Process) -> None:
        if process.ready and process.serial < 0:
            process.serial = len(self._active)
            self._active.append(process)

    def _deactivate(self, process: Process) -> None:
        if process.serial >= 0:
            last = self._active.pop()
            if last is not process:
                self._active[process.serial] = last
                last.serial = process.serial
            process.serial = -1

    def spawn(
        self, process: Process, work: Coroutine[Any, Any, T], name: str | None = None
    ) -> "asyncio.Task[T]":
        """Starts a task that belongs to a process, whoever calls."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        task: asyncio.Task[T] = self.create_task(work, name=name, context=context)
        return task

    def call_for(
        self, process: Process, delay_s: float, callback: Callable[..., Any], *args: Any
    ) -> asyncio.TimerHandle:
        """`call_later` for a process, whoever calls."""
        context = contextvars.Context()
        context.run(PROCESS.set, process)
        return self.call_at(self._now_s + delay_s, callback, *args, context=context)

    # --- asyncio's side

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Never: it would only slow the runs down."""

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def create_future(self) -> SimFuture:
        return SimFuture(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        task = SimTask(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > 4_000:
            self._tasks = [it for it in self._tasks if not it.done()]
        return task

    def call_soon(  # type: ignore[override]  # looser, to be passed on as it is
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = SimHandle(callback, args, self, context)
        process = context.get(PROCESS, self.world)
        process.ready.append(handle)
        if process.serial < 0 and not process.paused and not process.killed:
            process.serial = len(self._active)
            self._active.append(process)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # looser, to be passed on as it is
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        raise NotImplementedError("there are no threads here")

    def call_later(  # type: ignore[override]  # looser, to be passed on as it is
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # looser, to be passed on as it is
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if context is None:
            context = contextvars.copy_context()
        handle = SimTimer(when, callback, args, self, context)
        self._serial += 1
        process = context.get(PROCESS, self.world)
        heapq.heappush(self._timers, (when, self._serial, handle, process))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.unhandled.append(f"{context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    # --- running

    def run_until_complete(self, future: Any) -> Any:
        task = self.spawn(self.world, future) if asyncio.iscoroutine(future) else future
        with self._running():
            at_once = 0
            while not task.done():
                if self._active:
                    self._run_some()
                    at_once += 1
                    if at_once > HANDLES_AT_ONCE_MAX:
                        raise Stuck("time does not go on: something calls itself again and again")
                else:
                    at_once = 0
                    self._pass_time()
        return task.result()

    @contextmanager
    def _running(self) -> Iterator[None]:
        hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._finalize)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)

    def _finalize(self, generator: Any) -> None:
        self.call_soon(self.create_task, generator.aclose())

    def _run_some(self) -> None:
        """A few handles of one process, drawn from those that have some."""
        draw = self._random.random()
        count = len(self._active)
        process = self._active[int(draw * count)] if count > 1 else self._active[0]
        ready = process.ready
        self.digest = zlib.crc32(process.tag, self.digest)
        for _ in range(1 + int(draw * 997) % 6):
            handle = ready.popleft()
            if not handle._cancelled:
                self.handles_run += 1
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  as asyncio's own loop does
                    self.call_exception_handler({"message": "a handle", "exception": error})
            if process.serial < 0:
                return  # it was stopped by what it ran
            if not ready:
                self._deactivate(process)
                return

    def _pass_time(self) -> None:
        """To the next timer; timers of one process that are due keep their order."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing will ever happen again")
        self._now_s = max(self._now_s, timers[0][0])
        self.digest = (self.digest * 31 + hash(self._now_s)) & 0xFFFFFFFF
        while timers and timers[0][0] <= self._now_s:
            _, _, handle, process = heapq.heappop(timers)
            if not handle._cancelled:
                process.ready.append(handle)
                if not process.paused and not process.killed:
                    self._activate(process)

    # --- the end of the world

    def take_down(self) -> None:
        """Ends every task, of killed processes too, so that nothing is left to the collector."""
        with self._running():
            for _ in range(50):
                tasks = [it for it in self._tasks if not it.done()]
                if not tasks:
                    break
                for process in self.processes:
                    process.killed = process.paused = False
                    self._activate(process)
                for task in tasks:
                    task.cancel()
                for _ in range(HANDLES_AT_ONCE_MAX):
                    if not self._active:
                        break
                    self._run_some()
                else:
                    raise Stuck("the world cannot be taken down")
                if any(not it.done() for it in self._tasks) and self._timers:
                    self._pass_time()
            self._tasks.clear()
            self._timers.clear()
        self._closed = True
