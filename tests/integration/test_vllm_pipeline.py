"""The whole pipeline with nothing left out: HTTP, Kafka, a worker with real vLLM, Kafka, SSE."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from producer_api.app import ApiService
from producer_api.settings import ApiSettings
from tests.engine_recorder import EngineRecorder
from tests.failover_rows import PERSON
from tests.shared_engine import BorrowedEngine, Lender
from topics.catalogue import TopicSettings, catalogue
from topics.kafka import KafkaLog
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.timeout(60)]

KEY = "a-key-for-tests"
POOL = "vllm"
ASK: Any = [{"role": "user", "content": "Name three rivers and say where they are."}]


@dataclass
class Stack:
    """A replica, and workers on one engine; the last of `workers` is the one that runs."""

    cluster: ClusterSettings
    lender: Lender
    engine: Any
    client: AsyncOpenAI
    model: str
    workers: list[tuple[InferenceService, BorrowedEngine]] = field(default_factory=list)

    async def add_worker(self) -> None:
        borrowed = self.lender.lend()
        settings = WorkerSettings(
            cluster=self.cluster,
            pool=POOL,
            tiers=("standard",),
            worker_id=f"vllm-{len(self.workers)}",
            session_timeout_seconds=2.0,
        )
        worker = InferenceService(settings, engine=borrowed)
        await worker.start()
        self.workers.append((worker, borrowed))

    async def until_owned(self) -> None:
        async with asyncio.timeout(20):
            while not self.workers[-1][0].owns_all():
                await asyncio.sleep(0.05)

    def kill_worker(self) -> None:
        """As SIGKILL would: no word to the log, to the group, or to anybody."""
        worker, borrowed = self.workers[-1]
        borrowed.kill()
        for task in worker._tasks:
            task.cancel()
        for tier in worker._tiers:
            member: Any = tier.member
            coordinator = member.consumer._coordinator
            coordinator._coordination_task.cancel()
            coordinator._heartbeat_task.cancel()

    async def until_idle(self) -> None:
        """No run is left, neither in the worker nor in vLLM."""
        worker = self.workers[-1][0].worker
        assert worker is not None
        inside = self.engine._process._llm.output_processor
        async with asyncio.timeout(10):
            while worker.scheduler.running or inside.get_num_unfinished_requests():
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(
    kafka_bootstrap: str,
    vllm_recorder: EngineRecorder,
) -> AsyncIterator[Stack]:
    cluster = ClusterSettings(bootstrap=kafka_bootstrap)
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    api = ApiService(ApiSettings(cluster=cluster, port=port, api_key=KEY))
    await api.start()
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
    lender = Lender(vllm_recorder.engine)
    model = vllm_recorder.engine.models[0].name
    stack = Stack(cluster, lender, vllm_recorder.engine, client, model)
    await stack.add_worker()
    await stack.until_owned()
    yield stack
    await client.close()
    await api.drain()
    await api.stop()
    for worker, _ in reversed(stack.workers):
        await worker.stop(drain=False)
    lender.close()
    await log.close()


def epochs_ended(worker: InferenceService) -> int:
    families = worker.metrics.registry.collect()
    ended = [it for it in families if it.name == "inferlog_epochs_ended"]
    return int(sum(it.value for it in ended[0].samples if it.name.endswith("_total")))


async def streamed(stack: Stack, kill_after_chunks: int | None = None, **more: Any) -> list[Any]:
    """All chunks of a streamed answer; after some of them its worker dies, and another comes."""
    stream = await stack.client.chat.completions.create(
        model=stack.model,
        messages=ASK,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        **more,
    )
    chunks = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == kill_after_chunks:
            stack.kill_worker()
            await stack.add_worker()
    return chunks


def text_of(chunks: list[Any]) -> str:
    return "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)


async def test_a_chat_is_the_same_whole_and_streamed(stack: Stack) -> None:
    whole = await stack.client.chat.completions.create(
        model=stack.model, messages=ASK, temperature=0.0, max_tokens=16
    )
    chunks = await streamed(stack, max_tokens=16)
    assert whole.choices[0].message.content == text_of(chunks)
    assert text_of(chunks).strip()
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    assert whole.usage.prompt_tokens > 10
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump() | {
        # the prompt of the second was in vLLM's cache
        "prompt_tokens_details": chunks[-1].usage.model_dump()["prompt_tokens_details"]
    }


async def test_a_prompt_over_the_context_is_refused_with_a_status(stack: Stack) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(BadRequestError) as found:
        await stack.client.chat.completions.create(
            model=stack.model, messages=long, max_tokens=8, stream=True
        )
    assert found.value.code == "context_length_exceeded"


async def test_a_schema_is_followed(stack: Stack) -> None:
    answer = await stack.client.chat.completions.create(
        model=stack.model,
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        max_tokens=48,
        temperature=0.0,
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"name", "age"}
    assert answer.choices[0].finish_reason == "stop"


async def test_closing_the_stream_frees_the_slot_in_vllm(stack: Stack) -> None:
    stream = await stack.client.chat.completions.create(
        model=stack.model,
        messages=ASK,
        max_tokens=1500,
        stream=True,
        logit_bias={"2": -100},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    worker = stack.workers[-1][0].worker
    assert worker is not None
    assert worker.scheduler.running == 1
    await stream.close()
    await stack.until_idle()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "frequency_penalty": 0.4,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "schema": PERSON},
            },
        },
    ],
    ids=["greedy", "penalised_json_schema"],
)
async def test_a_killed_workers_sentence_goes_on_elsewhere(
    stack: Stack, more: dict[str, Any]
) -> None:
    undisturbed = await streamed(stack, max_tokens=40, **more)
    # role, then content: the worker dies in the middle of its sentence
    disturbed = await streamed(stack, kill_after_chunks=5, max_tokens=40, **more)
    resumed = stack.workers[-1][1].submitted
    # once; and once more for each epoch that the new worker had to end itself, on a busy machine
    assert [len(run.logged) for run in resumed] == [1] * len(resumed)
    assert 1 <= len(resumed) <= 1 + epochs_ended(stack.workers[-1][0])
    assert 1 <= len(resumed[0].logged[0].token_ids) < undisturbed[-1].usage.completion_tokens
    assert text_of(disturbed) == text_of(undisturbed)
    ends = [it.choices[0].finish_reason for it in disturbed if it.choices]
    assert [reason for reason in ends if reason] == [
        it.choices[0].finish_reason for it in undisturbed if it.choices
    ][-1:]
    assert disturbed[-1].usage.prompt_tokens == undisturbed[-1].usage.prompt_tokens
    assert disturbed[-1].usage.completion_tokens == undisturbed[-1].usage.completion_tokens
    await stack.until_idle()
