"""A child is asked how it is; what does not answer is not taken for something that has just begun."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from inferlog.child_health import is_starting, until_ready
from inferlog.local_ports import any_free
from runtime.health import HealthServer
from runtime.service import State


class Process:
    """A process that serves its health in the given state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._server = HealthServer("127.0.0.1", 0, CollectorRegistry(), self._probe)

    def _probe(self) -> tuple[bool, Mapping[str, Any]]:
        return self.state is State.RUNNING, {"state": self.state.value}

    def __enter__(self) -> str:
        self._server.start()
        return f"http://127.0.0.1:{self._server.port}/health"

    def __exit__(self, *_: object) -> None:
        self._server.stop()


@pytest.mark.parametrize("state", list(State))
async def test_only_new_and_starting_are_starting(state: State) -> None:
    with Process(state) as url:
        assert await is_starting(url) == (state in {State.NEW, State.STARTING})


async def test_one_that_does_not_listen_yet_is_starting() -> None:
    assert await is_starting(f"http://127.0.0.1:{any_free('127.0.0.1', 1)}/health")


async def test_one_that_listens_and_says_nothing_is_not_taken_for_starting() -> None:
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert not await is_starting(f"http://127.0.0.1:{port}/health")
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_readiness_is_waited_for() -> None:
    process = Process(State.STARTING)
    with process as url:
        waiting = asyncio.create_task(until_ready(url))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        process.state = State.RUNNING
        await asyncio.wait_for(waiting, 5)
