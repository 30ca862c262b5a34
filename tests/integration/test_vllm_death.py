"""A real vLLM whose own process is killed amid an answer: the worker replaces it, the answer goes on."""

import asyncio
import os
import signal
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.stream import Visible, is_terminal
from producer_api.submission import Draft
from schemas.replies import Finished, Started, Tokens
from schemas.requests import COMPLETIONS, Body
from tests.memory_stack import POOL, MemoryStack

# two starts of vLLM: `make test` promises one for all its tests
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

ANSWER_TOKENS = 200


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[MemoryStack]:
    stack = await MemoryStack().start()
    yield stack
    await stack.stop()


def engine_cores() -> set[psutil.Process]:
    """vLLM's own processes, those that compute: other tests' engine may be one of them."""
    below = psutil.Process().children(recursive=True)
    return {it for it in below if "EngineCore" in it.name()}


async def test_the_answer_goes_on_after_the_death_of_the_engine_core(
    stack: MemoryStack, vllm_model_dir: Path
) -> None:
    others = engine_cores()
    settings = WorkerSettings(
        pool=POOL,
        engine="vllm",
        model=str(vllm_model_dir),
        engine_option=("dtype=float32", "max_num_seqs=4", "max_model_len=1024"),
        worker_id="w",
        limits=stack.limits,
    )
    with warnings.catch_warnings():
        # what vLLM's libraries deprecate among themselves, while they are imported and compiled
        warnings.simplefilter("ignore")
        worker = InferenceService(settings, log=stack.log)
        stack.workers.append(worker)
        await worker.start()
        await stack.open_api()
        draft = Draft(
            tenant="one",
            tier="standard",
            model=vllm_model_dir.name,
            endpoint=COMPLETIONS,
            body=Body(
                prompt="Count: one, two, three,",
                max_tokens=ANSWER_TOKENS,
                temperature=0.0,
                logit_bias={"2": -100.0},
            ),
        )
        submission = await stack.api.submit(draft)
        found: list[Visible] = []
        while sum(len(it.token_ids) for it in found if isinstance(it, Tokens)) < 10:
            found += await submission.stream.next(30.0)
        (own,) = engine_cores() - others
        os.kill(own.pid, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        killed_s = loop.time()
        while not worker._engine.away:
            assert loop.time() - killed_s < 2.0, "a death is noticed at once"
            await asyncio.sleep(0.01)
        while not is_terminal(found[-1]):
            found += await submission.stream.next(60.0)
        await submission.stream.close()
    assert isinstance(found[-1], Finished)
    assert found[-1].counts == (ANSWER_TOKENS,)
    seqs = [it.seq for it in found if isinstance(it, Tokens)]
    lengths = [len(it.token_ids) for it in found if isinstance(it, Tokens)]
    assert seqs == [sum(lengths[:index]) for index in range(len(lengths))]
    starts = [it for it in stack.events() if isinstance(it, Started)]
    assert len(starts) == 2
    assert sum(starts[1].counts) >= 10
    assert worker.metrics.engine_restarts._value.get() == 1
