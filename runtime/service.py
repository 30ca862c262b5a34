"""The life of a process: one object, one state, one way down.

NEW -> STARTING -> RUNNING -> DRAINING -> STOPPED, or FAILED with the error that ended it. The first
signal asks for a graceful end within a limit, the second cancels what is still under way. Whatever
happens, `Service.stop` is awaited once, so that nothing a process started outlives it.
"""

import asyncio
import contextlib
import enum
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FORCED = 130
"""A second signal cut the graceful end short."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: a terminal that is closed ends what runs in it as Ctrl-C would, and leaves nothing."""

_log = logging.getLogger(__name__)


class State(enum.Enum):
    """Where a process is in its life."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class SideTaskEnded(RuntimeError):
    """A task that should run as long as the process returned without an error."""


class StopTooSlow(RuntimeError):
    """`Service.stop` did not return within its limit: something may be left behind."""


class Service(Protocol):
    """What a process does. Each method is called at most once."""

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Returns when it can do its work, with the tasks whose end is the end of the process."""
        ...

    async def drain(self) -> None:
        """Takes no new work and returns when what is in flight is done. Cancelled at the limit."""
        ...

    async def stop(self) -> None:
        """Lets go of everything, also after a start that failed half way."""
        ...


class Lifecycle:
    """Runs one service once. `state` and `failure` tell how it goes."""

    def __init__(
        self,
        service: Service,
        *,
        drain_seconds: float,
        stop_seconds: float = 15.0,
        on_state: Callable[[State], None] | None = None,
    ) -> None:
        self.failure: BaseException | None = None
        self.forced = False
        self._service = service
        self._drain_seconds = drain_seconds
        self._stop_seconds = stop_seconds
        self._on_state = on_state
        self._state = State.NEW
        self._stop_asked = asyncio.Event()
        self._cancel_asked = asyncio.Event()

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    def stop(self) -> None:
        """Asks for a graceful end. Idempotent, also before `run`."""
        self._stop_asked.set()

    def cancel(self) -> None:
        """Asks for an end at once: what is in flight is cut off. Idempotent."""
        self._stop_asked.set()
        if not self._cancel_asked.is_set():
            self.forced = True
            self._cancel_asked.set()

    def signalled(self) -> None:
        """A signal came: the first one drains, any further one cancels."""
        if self._stop_asked.is_set():
            self.cancel()
        else:
            self.stop()

    async def run(self) -> None:
        """Starts, waits for the end, drains, stops. Raises what brought the process down."""
        if self._state is not State.NEW:
            raise RuntimeError("a lifecycle runs once")
        try:
            await self._live()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            try:
                await self._release()
            finally:
                self._enter(State.FAILED if self.failure is not None else State.STOPPED)

    async def _live(self) -> None:
        self._enter(State.STARTING)
        starting = asyncio.create_task(self._service.start(), name="service-start")
        if not await self._either(starting, self._stop_asked):
            return
        side_tasks = starting.result()
        self._enter(State.RUNNING)
        watching = asyncio.create_task(_first_end(side_tasks), name="service-watch")
        try:
            if await self._either(watching, self._stop_asked):
                watching.result()
            self._enter(State.DRAINING)
            await self._drain(watching)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _drain(self, watching: "asyncio.Task[None]") -> None:
        if self._cancel_asked.is_set():
            return
        # Begun anew, since the one that waited for the signal was cancelled with it.
        draining = asyncio.create_task(self._service.drain(), name="service-drain")
        try:
            async with asyncio.timeout(self._drain_seconds):
                if await self._either(draining, self._cancel_asked):
                    draining.result()
                else:
                    # no warning: whoever asked knows
                    _log.info("told again to stop: what is in flight is cut off")
        except TimeoutError:
            _log.warning(
                "still not done after %g s: what is in flight is cut off", self._drain_seconds
            )
        if watching.done() and not watching.cancelled():
            watching.result()

    async def _either(self, task: "asyncio.Task[Any]", event: asyncio.Event) -> bool:
        """True when the task ended first. Otherwise, or when cancelled, it is ended and awaited."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return task.done()
        finally:
            waiting.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _release(self) -> None:
        releasing = asyncio.create_task(self._service.stop(), name="service-stop")
        done, _ = await asyncio.wait({releasing}, timeout=self._stop_seconds)
        if not done:
            releasing.cancel()
            await asyncio.wait({releasing}, timeout=1.0)
            if self.failure is None:
                self.failure = StopTooSlow(f"not stopped after {self._stop_seconds:g} s")
                raise self.failure
        elif (error := releasing.exception()) is not None:
            if self.failure is None:
                self.failure = error
                raise error
            _log.error("and stopping failed: %s: %s", type(error).__name__, error)

    def _enter(self, state: State) -> None:
        self._state = state
        _log.info("%s", state.value)
        if self._on_state is not None:
            self._on_state(state)


async def _first_end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Waits until one of them ends, and raises for it."""
    if not tasks:
        await asyncio.Event().wait()
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    raise SideTaskEnded(f"{next(iter(done)).get_name()} ended, though it should run for ever")


@contextlib.contextmanager
def signals_to(handle: Callable[[], None]) -> Iterator[None]:
    """Calls `handle` on the running loop for each of SIGNALS; restores what was before.

    A SIGHUP that is ignored stays so: that is what `nohup` asks for.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, earlier in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, earlier)


async def run_service(
    service: Service,
    drain_seconds: float,
    *,
    stop_seconds: float = 15.0,
    on_state: Callable[[State], None] | None = None,
    explained: tuple[type[Exception], ...] = (),
) -> int:
    """Runs a service under the signals of its process; returns the exit code.

    0: ended as asked; 1: it failed, and the log says why; 130: a second signal cut it short.
    Raises only what is `explained`: errors whose text the caller shows in place of a trace.
    """
    life = Lifecycle(
        service, drain_seconds=drain_seconds, stop_seconds=stop_seconds, on_state=on_state
    )
    with signals_to(life.signalled):
        try:
            await life.run()
        except explained:
            raise
        except Exception:  # noqa: BLE001  (the last resort: logged, and told by the exit code)
            _log.exception("the process failed")
            return EXIT_FAILED
    return EXIT_FORCED if life.forced else EXIT_OK
