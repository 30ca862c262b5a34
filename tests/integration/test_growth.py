"""Topics that grow while everything runs: `replies`, request topics, and what never grows."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from core.errors import Refusal
from core.stream import Visible
from inferlog.topics import create_topics, grow_topics, topic_differences
from producer_api import growth
from producer_api.pipeline import Pipeline
from producer_api.submission import Draft
from runtime.metrics import Metrics
from schemas.codec import decode_dead_letter, decode_reply, encode
from schemas.envelope import request_headers
from schemas.fences import Acquired
from schemas.ids import make_request_id, parse_request_id
from schemas.replies import Fence, Finished
from schemas.requests import CHAT, Body, Message
from tests.memory_stack import POOL, MemoryStack, scripted_answer, text_of
from topics.catalogue import CLAIMS, DEAD_LETTERS, REPLIES, TopicSettings, request_topic
from topics.memory import MemoryLog
from topics.ports import Partition

pytestmark = pytest.mark.timeout(60)

TOPIC = request_topic(POOL, "standard")


@pytest_asyncio.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryStack]:
    monkeypatch.setattr(growth, "LOOK_SECONDS", 0.2)
    stack = await MemoryStack().start()
    yield stack
    await stack.stop()


async def put(stack: MemoryStack, reply_partition: int, prompt: str) -> str:
    """A request record under an id of our own, as a topic producer makes one."""
    now_ms = int(stack.api._clock.now_ms())
    request_id = make_request_id(now_ms, reply_partition, 12345 + reply_partition)
    draft = Draft(
        tenant="one",
        tier="standard",
        model="scripted",
        endpoint=CHAT,
        body=Body(messages=(Message(role="user", content=prompt),), max_tokens=30),
    )
    appender = await stack.log.appender()
    await appender.append(
        TOPIC,
        0,
        encode(draft.request(request_id, POOL)),
        headers=request_headers(request_id, "one", now_ms, None),
    )
    await appender.close()
    return request_id


async def answered(stack: MemoryStack, request_id: str) -> list[Visible]:
    """Without an `Accepted` there is nothing to read before its first start."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await stack.read(request_id)
            except Refusal as refusal:
                if refusal.code != "not_found":
                    raise
                await asyncio.sleep(0.05)


async def test_a_worker_fences_again_before_it_speaks_on_a_new_partition(
    stack: MemoryStack,
) -> None:
    await stack.worker("tokens_per_second=100")
    await stack.open_api()
    running = await stack.ask("was running", 60)
    await stack.log.grow({REPLIES: 6})
    request_id = await put(stack, 5, "on the new one")
    answer = await answered(stack, request_id)
    assert isinstance(answer[-1], Finished)
    assert text_of(answer) == scripted_answer("on the new one", 30)
    assert text_of(await stack.read(running)) == scripted_answer("was running", 60)
    assert isinstance(stack.log, MemoryLog)
    here = [decode_reply(it.value) for it in stack.log.records(Partition(REPLIES, 5))]
    assert isinstance(here[0], Fence), "nothing is said there before a fence"
    owners = [it for it in stack.fences() if isinstance(it, Acquired) and f"{TOPIC}/0" in it.qs]
    assert [len(it.ends) for it in owners] == [4, 6]


async def test_a_partition_that_was_made_up_ends_no_epoch(stack: MemoryStack) -> None:
    await stack.worker("tokens_per_second=0")
    await stack.open_api()
    owners = len(stack.fences())
    request_id = await put(stack, 77, "nowhere")
    assert isinstance(stack.log, MemoryLog)
    async with asyncio.timeout(10):
        while not (letters := stack.log.records(Partition(DEAD_LETTERS, 0))):
            await asyncio.sleep(0.05)
    letter = decode_dead_letter(letters[0].value)
    assert (letter.request_id, letter.reason) == (request_id, "bad_request_id")
    after = await stack.ask("the partition moves on")
    assert text_of(await stack.read(after)) == scripted_answer("the partition moves on", 16)
    assert len(stack.fences()) == owners
    with pytest.raises(Refusal, match="no such request"):
        await stack.api.open("one", request_id)


async def test_replicas_take_up_their_share_and_serve_ids_that_others_make_there(
    stack: MemoryStack,
) -> None:
    await stack.worker("tokens_per_second=0")
    replicas = [
        Pipeline(stack.log, stack.limits, Metrics(), replica_index=i, replica_count=2)
        for i in range(2)
    ]
    for replica in replicas:
        await replica.start()
    stack.api = replicas[0]
    await stack.log.grow({REPLIES: 7})
    async with asyncio.timeout(10):
        while {it._placement.reply_partitions for it in replicas} != {7}:
            await asyncio.sleep(0.02)
    assert [sorted(it._router.home) for it in replicas] == [[0, 2, 4, 6], [1, 3, 5]]
    ids = [await stack.ask(f"p{i}") for i in range(8)]
    assert {parse_request_id(it).reply_partition for it in ids} == {0, 2, 4, 6}
    stack.api = replicas[1]
    for index, request_id in enumerate(ids):
        assert text_of(await stack.read(request_id)) == scripted_answer(f"p{index}", 16)
    await replicas[0].stop()


async def test_an_id_beyond_what_a_replica_knows_makes_it_look(
    stack: MemoryStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LOOK_SECONDS", 1000.0)
    await stack.worker("tokens_per_second=0")
    await stack.open_api()
    await stack.log.grow({REPLIES: 5})
    request_id = await put(stack, 4, "quick")
    assert text_of(await answered(stack, request_id)) == scripted_answer("quick", 30)


async def test_a_mailbox_on_a_new_home_partition_hears_everything(stack: MemoryStack) -> None:
    await stack.worker("tokens_per_second=100")
    await stack.open_api()
    running = await stack.ask("before", 40)
    await stack.log.grow({REPLIES: 5})
    await stack.api._growth.look()
    bodies = [f"after {i}" for i in range(10)]
    drafts = [
        Draft(
            tenant="one",
            tier="standard",
            model="scripted",
            endpoint=CHAT,
            body=Body(messages=(Message(role="user", content=text),), max_tokens=20),
        )
        for text in bodies
    ]
    submissions = [await stack.api.submit(draft) for draft in drafts]
    assert 4 in {parse_request_id(it.request_id).reply_partition for it in submissions}
    for text, submission in zip(bodies, submissions, strict=True):
        assert submission.stream._mailbox is not None
        found = []
        async with asyncio.timeout(15):
            while not submission.stream.ended:
                found += await submission.stream.next(1.0)
        assert text_of(found) == scripted_answer(text, 20)
        await submission.stream.close()
    assert text_of(await stack.read(running)) == scripted_answer("before", 40)


async def test_requests_on_partitions_that_were_added_are_run(stack: MemoryStack) -> None:
    worker = await stack.worker("tokens_per_second=0")
    await stack.open_api()
    await stack.log.grow({TOPIC: 12})
    async with asyncio.timeout(10):
        while sum(len(tier.owned) for tier in worker._tiers) != 3 * 4 + 12:
            await asyncio.sleep(0.02)
    ids = {f"prompt {i}": await stack.ask(f"prompt {i}") for i in range(30)}
    for prompt, request_id in ids.items():
        assert text_of(await stack.read(request_id)) == scripted_answer(prompt, 16)
    assert isinstance(stack.log, MemoryLog)
    used = [i for i in range(12) if stack.log.records(Partition(TOPIC, i))]
    assert max(used) >= 4


async def test_topics_create_only_adds_and_never_to_claims() -> None:
    log = MemoryLog()
    small = TopicSettings(request_partitions=2, reply_partitions=4, claim_partitions=4)
    await create_topics(log, POOL, small)
    large = TopicSettings(request_partitions=3, reply_partitions=8, claim_partitions=9)
    assert await create_topics(log, POOL, large) == []
    requests = sorted(request_topic(POOL, t) for t in ("premium", "standard", "free", "batch"))
    assert await grow_topics(log, POOL, large) == [REPLIES, *requests]
    assert await grow_topics(log, POOL, small) == []
    sizes = {name: log.size(name) for name in (REPLIES, CLAIMS, TOPIC)}
    assert sizes == {REPLIES: 8, CLAIMS: 4, TOPIC: 3}
    (sentence,) = await topic_differences(log, POOL, large)
    assert sentence.startswith("claims: has 4 partitions; the count is for ever")
