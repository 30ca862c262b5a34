"""A stack that is hurt again and again, and load whose every answer is judged."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import Clients
from tests.faults.operation import KINDS, POISON, STALLS, Kind
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import view, violations
from tests.faults.watching import watched, writings

Load = Callable[..., AbstractAsyncContextManager[Clients]]

ENGINE = (
    "tokens_per_second=40",
    "ttft_ms=100",  # so that kills meet requests before their first token, too
    "slots=1200",
    f"fail=stall:{STALLS}",
    f"fail=kill_on:{POISON[0]}",
    f"fail=die_on:{POISON[1]}",
)


@pytest.fixture(scope="session")
def stack(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Two workers, two replicas, one broker; it must survive every test of this folder."""
    running = RunningStack(tmp_path_factory.mktemp("faults"), workers=2, engine_options=ENGINE)
    yield running
    running.end()


@asynccontextmanager
async def judged_load(
    stack: RunningStack,
    seed: int,
    *,
    requests: int = 200,
    per_second: float = 20.0,
    kinds: Sequence[Kind] = KINDS,
    max_tokens: tuple[int, int] = (8, 80),
    ok_share: float = 0.5,
    parameters: Mapping[str, Any] | None = None,
) -> AsyncIterator[Clients]:
    """Runs requests while the body does its harm; fails with every promise that was broken.

    `ok_share` of them, at least, must have been answered: refusals are allowed while a part that
    nothing can be done without is away, but a system that refuses all would keep every promise.
    """
    clients = Clients(
        stack.replicas,
        stack.key,
        seed=seed,
        kinds=kinds,
        max_tokens=max_tokens,
        model=stack.model,
        parameters=parameters,
    )
    running = asyncio.create_task(clients.run(requests, per_second))
    try:
        async with watched(stack) as samples:
            yield clients
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await clients.close()
    found = await view(stack.bootstrap)
    clients.read = found.read
    found.history.samples, found.history.writings = samples, await writings(stack)
    wrong = violations(clients, found)
    assert not wrong, "\n".join(wrong)
    assert samples
    assert found.history.commits
    ended = Counter(it.outcome for it in clients.history)
    errors = Counter(it.error for it in clients.history if it.error)
    assert ended["ok"] >= ok_share * requests, (ended, errors)
    await stack.healthy()


@pytest.fixture
def load() -> Load:
    """See `judged_load`."""
    return judged_load
