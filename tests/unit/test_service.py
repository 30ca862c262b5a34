import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from runtime.service import (
    EXIT_FAILED,
    EXIT_OK,
    Lifecycle,
    SideTaskEnded,
    State,
    StopTooSlow,
    run_service,
)


class Recorder:
    """A service that notes what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.side = asyncio.Event()
        self.side_error: Exception | None = None
        self.start_error: Exception | None = None
        self.start_takes = asyncio.Event()
        self.start_takes.set()
        self.drain_takes = asyncio.Event()
        self.drain_takes.set()
        self.stop_takes = asyncio.Event()
        self.stop_takes.set()
        self.task: asyncio.Task[None] | None = None

    async def _side(self) -> None:
        await self.side.wait()
        if self.side_error is not None:
            raise self.side_error

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        self.calls.append("start")
        await self.start_takes.wait()
        if self.start_error is not None:
            raise self.start_error
        self.task = asyncio.create_task(self._side(), name="side")
        return [self.task]

    async def drain(self) -> None:
        self.calls.append("drain")
        await self.drain_takes.wait()
        self.calls.append("drained")

    async def stop(self) -> None:
        self.calls.append("stop")
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.stop_takes.wait()


async def until(state: State, life: Lifecycle) -> None:
    async with asyncio.timeout(5):
        while life.state is not state:
            await asyncio.sleep(0.001)


async def test_the_first_signal_drains_and_stops() -> None:
    service, states = Recorder(), list[State]()
    life = Lifecycle(service, drain_seconds=5, on_state=states.append)
    running = asyncio.create_task(life.run())
    await until(State.RUNNING, life)
    life.signalled()
    await running
    assert service.calls == ["start", "drain", "drained", "stop"]
    assert states == [State.STARTING, State.RUNNING, State.DRAINING, State.STOPPED]
    assert not life.forced


async def test_a_second_signal_cuts_the_drain_off() -> None:
    service = Recorder()
    service.drain_takes.clear()
    life = Lifecycle(service, drain_seconds=60)
    running = asyncio.create_task(life.run())
    await until(State.RUNNING, life)
    life.signalled()
    await until(State.DRAINING, life)
    life.signalled()
    async with asyncio.timeout(5):
        await running
    assert service.calls == ["start", "drain", "stop"]
    assert life.forced


async def test_a_drain_ends_at_its_limit() -> None:
    service = Recorder()
    service.drain_takes.clear()
    life = Lifecycle(service, drain_seconds=0.01)
    life.stop()
    running = asyncio.create_task(life.run())
    async with asyncio.timeout(5):
        await running
    assert service.calls[-1] == "stop"
    assert life.state is State.STOPPED


async def test_a_stop_asked_for_before_the_start_has_ended_is_not_lost() -> None:
    service = Recorder()
    service.start_takes.clear()
    life = Lifecycle(service, drain_seconds=5)
    running = asyncio.create_task(life.run())
    await until(State.STARTING, life)
    await asyncio.sleep(0.01)
    life.stop()
    life.stop()
    async with asyncio.timeout(5):
        await running
    assert service.calls == ["start", "stop"]


async def test_a_side_task_that_dies_brings_the_process_down_with_its_error() -> None:
    service = Recorder()
    service.side_error = ValueError("broken")
    life = Lifecycle(service, drain_seconds=5)
    running = asyncio.create_task(life.run())
    await until(State.RUNNING, life)
    service.side.set()
    with pytest.raises(ValueError, match="broken"):
        await running
    assert life.state is State.FAILED
    assert service.calls == ["start", "stop"]


async def test_a_side_task_that_just_returns_is_a_failure_too() -> None:
    service = Recorder()
    service.side.set()
    with pytest.raises(SideTaskEnded, match="side"):
        await Lifecycle(service, drain_seconds=5).run()


async def test_a_start_that_fails_is_cleaned_up() -> None:
    service = Recorder()
    service.start_error = ValueError("no disk")
    life = Lifecycle(service, drain_seconds=5)
    with pytest.raises(ValueError, match="no disk"):
        await life.run()
    assert service.calls == ["start", "stop"]
    assert life.state is State.FAILED


async def test_a_stop_that_hangs_is_told_and_does_not_hang_the_process() -> None:
    service = Recorder()
    service.stop_takes.clear()
    life = Lifecycle(service, drain_seconds=5, stop_seconds=0.01)
    life.stop()
    with pytest.raises(StopTooSlow):
        async with asyncio.timeout(5):
            await life.run()


async def test_exit_codes_and_errors_that_the_caller_explains() -> None:
    service = Recorder()
    service.start_error = ValueError("x")
    assert await run_service(service, 1) == EXIT_FAILED
    service = Recorder()
    service.start_error = ValueError("x")
    with pytest.raises(ValueError, match="x"):
        await run_service(service, 1, explained=(ValueError,))
    service = Recorder()

    def stop_at_once(state: State) -> None:
        if state is State.RUNNING:
            os.kill(os.getpid(), signal.SIGTERM)

    assert await run_service(service, 1, on_state=stop_at_once) == EXIT_OK
    assert service.calls == ["start", "drain", "drained", "stop"]
