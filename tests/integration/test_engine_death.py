"""An engine that dies is replaced in its worker: same memberships, same requests, nothing twice."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from consumers.inference.engine import replaced
from consumers.inference.engine.ports import EngineDied, ReportHandler
from consumers.inference.engine.scripted import ScriptedEngine, ScriptedOptions
from schemas.fences import Acquired
from schemas.replies import Expired, Finished, Started
from tests.memory_stack import MemoryStack, scripted_answer, text_of


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[MemoryStack]:
    stack = await MemoryStack().start()
    yield stack
    await stack.stop()


class SlowToStart(ScriptedEngine):
    """Loads once it may; `start` fails while `failures` last."""

    failures = 0

    def __init__(
        self, may_load: asyncio.Event | None = None, options: ScriptedOptions | None = None
    ) -> None:
        super().__init__("scripted", options or ScriptedOptions(tokens_per_second=500))
        self._may_load = may_load

    async def start(
        self, on_reports: ReportHandler, on_death: Callable[[EngineDied], None]
    ) -> None:
        if self._may_load is not None:
            await self._may_load.wait()
        if SlowToStart.failures:
            SlowToStart.failures -= 1
            raise EngineDied("as the test wants it")
        await super().start(on_reports, on_death)


async def test_requests_go_on_where_the_dead_engine_left_them(stack: MemoryStack) -> None:
    worker = await stack.worker("tokens_per_second=200", "fail=die_after:25")
    members = [tier.member.member_id for tier in worker._tiers if tier.member]
    await stack.open_api()
    prompts = [f"prompt {index}" for index in range(6)]
    ids = [await stack.ask(prompt, 40) for prompt in prompts]
    answers = [await stack.read(request_id) for request_id in ids]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert text_of(answer) == scripted_answer(prompt, 40)
        end = answer[-1]
        assert isinstance(end, Finished)
        assert (end.counts, end.usage.completion_tokens) == ((40,), 40)
    restarts = worker.metrics.engine_restarts._value.get()
    assert restarts >= 1
    assert [tier.member.member_id for tier in worker._tiers if tier.member] == members
    resumed = [it for it in stack.events() if isinstance(it, Started) and it.counts != (0,)]
    assert resumed, "some were amid their answer"
    owners = [it for it in stack.fences() if isinstance(it, Acquired)]
    assert len({it.incarnation for it in owners}) == restarts + 1, "a death ends the incarnation"
    assert not worker.failed.done()


async def test_while_it_loads_the_models_are_announced_as_loading_and_deadlines_run(
    stack: MemoryStack,
) -> None:
    may_load = asyncio.Event()
    worker = await stack.worker(
        "tokens_per_second=200", "fail=die_on:poison", make_engine=lambda: SlowToStart(may_load)
    )
    await stack.open_api()
    await stack.ask("poison", 5)
    async with asyncio.timeout(5):
        while not worker._engine.away:
            await asyncio.sleep(0.005)
    assert not worker.owns_all()
    impatient = await stack.ask("no time", start_seconds=0.3)
    patient = await stack.ask("has time")
    end = (await stack.read(impatient))[-1]
    assert isinstance(end, Expired)
    assert end.deadline == "start"
    assert worker._engine.away, "it expired while there was no engine"
    may_load.set()
    assert text_of(await stack.read(patient)) == scripted_answer("has time", 16)
    told = stack.announced()
    assert told.index("loading") > 0
    assert told[-1] == "ready"


async def test_an_engine_that_does_not_come_back_ends_the_process(
    stack: MemoryStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced, "PAUSE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(SlowToStart, "failures", 100)
    worker = await stack.worker(
        "tokens_per_second=200", "fail=die_after:3", make_engine=SlowToStart
    )
    await stack.open_api()
    await stack.ask("hello", 40)
    with pytest.raises(EngineDied, match="5 engines in a row died"):
        await asyncio.wait_for(asyncio.shield(worker.failed), 10)
    assert SlowToStart.failures == 100 - (replaced.ATTEMPTS_MAX - 1)


async def test_some_failed_starts_are_borne(
    stack: MemoryStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced, "PAUSE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(SlowToStart, "failures", 2)
    await stack.worker("tokens_per_second=200", "fail=die_after:3", make_engine=SlowToStart)
    await stack.open_api()
    request_id = await stack.ask("hello", 40)
    assert text_of(await stack.read(request_id)) == scripted_answer("hello", 40)
    assert SlowToStart.failures == 0


async def test_a_worker_can_be_stopped_while_its_engine_is_replaced(stack: MemoryStack) -> None:
    worker = await stack.worker(
        "tokens_per_second=200",
        "fail=die_after:3",
        make_engine=lambda: SlowToStart(asyncio.Event()),
    )
    await stack.open_api()
    await stack.ask("hello", 40)
    async with asyncio.timeout(5):
        while not worker._engine.away:
            await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        await worker.stop()
    assert not worker.failed.done()
