"""A stack that is hurt again and again, and load whose every answer is judged."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from tests.faults.clients import Clients
from tests.faults.operation import KINDS, POISON, STALLS, Kind
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import view, violations
from tests.faults.watching import watched, writings

STRANGER = "a-stranger"
"""A tenant who tries to learn of requests that are not his."""

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
    folder = tmp_path_factory.mktemp("faults")
    (folder / "api-keys").write_text(f"default:{token_hex(16)}\n{STRANGER}:{token_hex(16)}\n")
    (folder / "api-keys").chmod(0o600)
    running = RunningStack(folder, workers=2, engine_options=ENGINE)
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
            if STRANGER in stack.keys:
                await stack.healthy()
                await clients.pry(stack.keys[STRANGER], STRANGER)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await clients.close()
    found = await view(stack.bootstrap)
    clients.read = found.read
    found.history.secrets += stack.keys.values()
    found.history.samples, found.history.writings = samples, await writings(stack)
    clients.wrong = violations(clients, found)
    assert not clients.wrong, "\n".join(clients.wrong)
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
