"""Between an HTTP handler and the log: two replicas and a worker driven by hand, on both logs."""

import asyncio
import dataclasses
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS, Limits
from core.stream import Visible, is_terminal
from producer_api.pipeline import Pipeline
from producer_api.rendering import renderer_of
from producer_api.streams import ReplyStream, ShuttingDown
from producer_api.submission import Draft, IdempotencyKey
from runtime.metrics import Metrics
from schemas.codec import decode_claim, decode_control, encode
from schemas.ids import make_request_id, parse_request_id
from schemas.operations import Claim
from schemas.replies import Accepted, Expired, Finished, Started, Tokens
from schemas.requests import CHAT, Body, Deadlines, Message
from tests.hand_worker import HandWorker
from topics.catalogue import CLAIMS, CONTROL, REPLIES, TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.memory import MemoryLog
from topics.ports import Log, Partition

POOL = "inner"
WORDS = ["one ", "two ", "three ", "four ", "five "]

Connect = Callable[[], Log]


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def connect(request: pytest.FixtureRequest) -> Connect:
    if request.param == "memory":
        shared = MemoryLog()
        return lambda: shared
    bootstrap: str = request.getfixturevalue("kafka_bootstrap")
    return lambda: KafkaLog(bootstrap, client_id="inner")


@dataclass
class Place:
    """Two replicas with half of the reply partitions each, a worker, and a tenant of this test."""

    connect: Connect
    log: Log
    worker: HandWorker
    limits: Limits = DEFAULT_LIMITS
    replicas: list[Pipeline] = field(default_factory=list)
    tenant: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:8]}")

    async def replica(self, **limits: float) -> Pipeline:
        """One more replica; the first two share the partitions, a third has those of the first."""
        index = len(self.replicas) % 2
        bounds = dataclasses.replace(self.limits, **limits)  # type: ignore[arg-type]
        pipeline = Pipeline(self.connect(), bounds, Metrics(), replica_index=index, replica_count=2)
        self.replicas.append(pipeline)
        await pipeline.start()
        return pipeline

    def draft(self, prompt: str = "hello", **more: object) -> Draft:
        return dataclasses.replace(
            Draft(
                tenant=self.tenant,
                tier="standard",
                model=self.worker.model,
                endpoint=CHAT,
                body=Body(messages=(Message(role="user", content=prompt),)),
            ),
            **more,  # type: ignore[arg-type]
        )


@pytest_asyncio.fixture
async def place(connect: Connect) -> AsyncIterator[Place]:
    log = connect()
    await log.create(catalogue(POOL, TopicSettings()))
    worker = await HandWorker(log, POOL, f"m-{uuid.uuid4().hex[:8]}").start()
    made = Place(connect, log, worker)
    yield made
    for pipeline in made.replicas:
        await pipeline.stop()
    await worker.close()
    await log.close()


def key(name: str, payload: str = "hello", *, attach: bool = False) -> IdempotencyKey:
    return IdempotencyKey(name, hashlib.sha256(payload.encode()).hexdigest(), attach)


async def drained(stream: ReplyStream, seconds: float = 10.0) -> list[Visible]:
    """Everything up to the terminal."""
    found: list[Visible] = []
    async with asyncio.timeout(seconds):
        while not (found and is_terminal(found[-1])):
            found += await stream.next(1.0)
    return found


def text_of(events: list[Visible]) -> str:
    return "".join(it.text for it in events if isinstance(it, Tokens))


async def refused(call: object, code: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code
    return caught.value


async def on_log(log: Log, topic: str) -> list[bytes]:
    """Every value on a topic now."""
    here = [Partition(topic, index) for index in range(await log.partition_count(topic))]
    starts, ends = await log.start_offsets(here), await log.end_offsets(here)
    tail = await log.tail(starts)
    found: list[bytes] = []
    try:
        async with asyncio.timeout(10):
            while any(tail.position(it) < ends[it] for it in here):
                found += [it.value or b"" for it in await tail.read(0.5)]
    finally:
        await tail.close()
    return found


# --- the way in and out


async def test_an_answer_comes_whole_in_order_and_ends_with_its_terminal(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    taken = await place.worker.take()
    assert (taken.request.id, submission.outcome) == (submission.request_id, "new")
    await place.worker.answer(taken, WORDS)
    events = await drained(submission.stream)
    assert [type(it) for it in events] == [Accepted, Started, *[Tokens] * 5, Finished]
    assert text_of(events) == "".join(WORDS)
    assert submission.stream.position == 5
    assert await submission.stream.next(0.1) == []
    await submission.stream.close()


async def test_ids_lie_in_the_home_partitions_of_the_replica_in_turn(place: Place) -> None:
    replicas = [await place.replica(), await place.replica()]
    for index, api in enumerate(replicas):
        made = [await api.submit(place.draft()) for _ in range(4)]
        homes = [parse_request_id(it.request_id).reply_partition for it in made]
        assert set(homes) == {index, index + 2}
        for it in made:
            await it.stream.close()


async def test_a_conversation_keeps_its_partition_as_it_grows(place: Place) -> None:
    api = await place.replica()
    first = (Message(role="system", content="be kind"), Message(role="user", content="hello"))
    more = (*first, Message(role="assistant", content="hi"), Message(role="user", content="and?"))
    for body in (Body(messages=first), Body(messages=more)):
        submission = await api.submit(place.draft(body=body))
        await submission.stream.close()
    assert len({it.q for it in await place.worker.take_all()}) == 1


async def test_events_queued_for_a_slow_client_come_as_one_batch(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    await place.worker.answer(await place.worker.take(), WORDS)
    await asyncio.sleep(0.3)
    batch = await submission.stream.next(1.0)
    assert len(batch) == 8
    await submission.stream.close()


async def test_nothing_new_means_an_empty_batch_after_the_wait(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    assert [type(it) for it in await submission.stream.next(1.0)] == [Accepted]
    assert await submission.stream.next(0.05) == []
    await submission.stream.close()


# --- from any replica, at any time


async def test_another_replica_tells_status_and_answer_while_it_runs_and_after(
    place: Place,
) -> None:
    home, other = await place.replica(), await place.replica()
    submission = await home.submit(place.draft())
    request_id = submission.request_id
    assert (await other.status(place.tenant, request_id)).state == "queued"
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, *WORDS[:2]))
    snapshot = await other.status(place.tenant, request_id)
    assert (snapshot.state, snapshot.info.model) == ("in_progress", place.worker.model)
    running = await other.open(place.tenant, request_id)
    assert text_of(await running.next(2.0)) == "one two "
    await place.worker.say(
        place.worker.tokens(taken, 2, *WORDS[2:]), place.worker.finished(taken, 5)
    )
    assert text_of(await drained(running)) == "three four five "
    snapshot = await other.status(place.tenant, request_id)
    assert (snapshot.state, text_of(snapshot.visible)) == ("completed", "".join(WORDS))
    late = await other.open(place.tenant, request_id)
    assert text_of(await drained(late)) == "".join(WORDS)
    for stream in (submission.stream, running, late):
        await stream.close()


async def test_many_streams_of_one_request_get_the_same(place: Place) -> None:
    home, other = await place.replica(), await place.replica()
    submission = await home.submit(place.draft())
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, *WORDS[:2]))
    streams = [
        await api.open(place.tenant, submission.request_id) for api in (home, other, home, other)
    ]
    await streams[0].close()
    reading = [asyncio.create_task(drained(it)) for it in (submission.stream, *streams[1:])]
    await place.worker.say(
        place.worker.tokens(taken, 2, *WORDS[2:]), place.worker.finished(taken, 5)
    )
    for events in await asyncio.gather(*reading):
        assert text_of(events) == "".join(WORDS)
    for stream in (submission.stream, *streams):
        await stream.close()


async def test_what_is_not_there_is_404_and_what_is_gone_410(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    await submission.stream.close()
    parts = parse_request_id(submission.request_id)
    unknown = make_request_id(parts.time_ms, parts.reply_partition, 1)
    nowhere = make_request_id(parts.time_ms, 4000, 1)
    old = make_request_id(parts.time_ms - 7_200_000, parts.reply_partition, 1)
    for call in (api.open, api.status):
        await refused(call("another-tenant", submission.request_id), "not_found")
        await refused(call(place.tenant, unknown), "not_found")
        await refused(call(place.tenant, nowhere), "not_found")
        await refused(call(place.tenant, "no id at all"), "not_found")
        await refused(call(place.tenant, old), "result_expired")


async def test_a_zombie_is_never_visible_and_its_successor_goes_on(place: Place) -> None:
    home, other = await place.replica(), await place.replica()
    submission = await home.submit(place.draft())
    worker, taken = place.worker, await place.worker.take()
    await worker.say(worker.started(taken), worker.tokens(taken, 0, *WORDS[:2]))
    old = worker.epoch
    await worker.own()
    await worker.say(worker.tokens(taken, 2, "ghost ", epoch=old))
    await worker.say(worker.finished(taken, 3, epoch=old))
    await worker.say(worker.started(taken, 2), worker.tokens(taken, 2, *WORDS[2:]))
    await worker.say(worker.finished(taken, 5))
    assert text_of(await drained(submission.stream)) == "".join(WORDS)
    late = await other.open(place.tenant, submission.request_id)
    assert text_of(await drained(late)) == "".join(WORDS)
    for stream in (submission.stream, late):
        await stream.close()


async def test_a_full_mailbox_is_dropped_and_the_stream_reads_on_from_the_log(
    place: Place,
) -> None:
    api = await place.replica(mailbox_events=4)
    submission = await api.submit(place.draft())
    words = [f"{number} " for number in range(60)]
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken))
    begun = [it for _ in range(2) for it in await submission.stream.next(0.5)]
    for seq, word in enumerate(words):
        await place.worker.say(place.worker.tokens(taken, seq, word))
        if seq in (2, 30, 45):
            begun += await submission.stream.next(1.0)
    await place.worker.say(place.worker.finished(taken, len(words)))
    await asyncio.sleep(0.3)
    events = begun + await drained(submission.stream)
    assert text_of(events) == "".join(words)
    assert sum(isinstance(it, Accepted) for it in events) == 1
    assert sum(isinstance(it, Started) for it in events) == 1
    drops = api.metrics.mailbox_drops._value.get()
    assert drops >= 1
    await submission.stream.close()


async def test_an_undecodable_reply_is_passed_over_and_counted(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, *WORDS[:2]))
    partition = parse_request_id(taken.request.id).reply_partition
    await place.worker._appender.append(REPLIES, partition, b"{no json")
    await place.worker.say(
        place.worker.tokens(taken, 2, *WORDS[2:]), place.worker.finished(taken, 5)
    )
    assert text_of(await drained(submission.stream)) == "".join(WORDS)
    assert api.metrics.log_faults.labels("undecodable_reply")._value.get() == 1
    assert (await api.status(place.tenant, submission.request_id)).state == "completed"
    await submission.stream.close()


async def test_without_a_terminal_a_request_counts_as_expired_in_the_end(place: Place) -> None:
    api = await place.replica(deadline_margin_seconds=0.2)
    deadlines = Deadlines(total_seconds=0.2)
    submission = await api.submit(place.draft(deadlines=deadlines))
    assert (await api.status(place.tenant, submission.request_id)).state == "queued"
    events = await drained(submission.stream, seconds=5.0)
    assert isinstance(events[-1], Expired)
    assert (await api.status(place.tenant, submission.request_id)).state == "expired"
    await submission.stream.close()


# --- resuming, keeping, deleting


@pytest.mark.parametrize("after", range(6))
async def test_a_stream_goes_on_after_any_position_without_loss_or_repetition(
    place: Place, after: int
) -> None:
    home, other = await place.replica(), await place.replica()
    submission = await home.submit(place.draft())
    await submission.stream.close()
    await place.worker.answer(await place.worker.take(), WORDS)
    snapshot, stream = await other.resume(place.tenant, submission.request_id)
    renderer = renderer_of(submission.request_id, snapshot.info, after)
    data = renderer.render(await drained(stream))
    said = "".join(re.findall(r'"content":"([^"]*)"', data.decode()))
    assert said == "".join(WORDS[after:])
    assert stream.position == renderer.position == 5
    await stream.close()


@pytest.mark.timeout(60)
async def test_two_hundred_resume_at_once_on_a_few_readers(place: Place) -> None:
    home, other = await place.replica(), await place.replica()
    made = [await home.submit(place.draft()) for _ in range(200)]
    taken = [await place.worker.take() for _ in made]
    for it in taken:
        await place.worker.say(place.worker.started(it), place.worker.tokens(it, 0, *WORDS[:2]))
    for submission in made:
        await submission.stream.close()
    resumed = await asyncio.gather(*[other.resume(place.tenant, it.request_id) for it in made])
    reading = [asyncio.create_task(drained(stream, 30.0)) for _, stream in resumed]
    for it in taken:
        await place.worker.say(place.worker.tokens(it, 2, *WORDS[2:]), place.worker.finished(it, 5))
    for events in await asyncio.gather(*reading):
        assert text_of(events) == "".join(WORDS)
    for _, stream in resumed:
        await stream.close()
    began = other.metrics.shared_scans._value.get()
    assert began <= 20, "readers opened for 200 streams"


async def test_a_finished_answer_costs_no_second_scan_and_is_the_same(place: Place) -> None:
    home, other = await place.replica(), await place.replica()
    submission = await home.submit(place.draft())
    await place.worker.answer(await place.worker.take(), WORDS)
    seen = await drained(submission.stream)
    await submission.stream.close()
    scanned = (await other.status(place.tenant, submission.request_id)).visible
    for api, scans in ((home, 0), (other, 1)):
        for _ in range(3):
            snapshot = await api.status(place.tenant, submission.request_id)
            assert snapshot.visible == seen == scanned
        stream = await api.open(place.tenant, submission.request_id)
        assert await drained(stream) == seen
        await stream.close()
        assert api.metrics.shared_scans._value.get() == scans
    await refused(home.status("another-tenant", submission.request_id), "not_found")


async def test_what_was_deleted_is_gone_on_every_replica_also_on_a_later_one(
    place: Place,
) -> None:
    replicas = [await place.replica(), await place.replica()]
    submission = await replicas[0].submit(place.draft(), idempotency=key("k"))
    await place.worker.answer(await place.worker.take(), WORDS)
    await drained(submission.stream)
    await submission.stream.close()
    for api in replicas:  # in memory on both
        await api.status(place.tenant, submission.request_id)
    await replicas[1].delete(place.tenant, submission.request_id)
    replicas.append(await place.replica())
    for api in replicas:
        for call in (api.status, api.open, api.resume):
            await refused(call(place.tenant, submission.request_id), "not_found")
        # the key is not free: nothing may run again under the same id
        await refused(api.submit(place.draft(), idempotency=key("k")), "result_expired")
    assert await place.worker.take_all() == []
    assert place.tenant not in {it[0] for api in replicas for it in api._retrieval._cache._finished}


async def test_deletions_are_bounded(place: Place) -> None:
    api = await place.replica(deleted_ids=1)
    submission = await api.submit(place.draft())
    await submission.stream.close()
    if not api._retrieval._control.is_full_of_deletions:
        await api.delete(place.tenant, submission.request_id)
    await refused(api.delete(place.tenant, submission.request_id), "overloaded")


async def test_a_ticket_is_used_once_whoever_asks_first(place: Place) -> None:
    replicas = [await place.replica(), await place.replica()]
    submission = await replicas[0].submit(place.draft())
    await submission.stream.close()
    for number in range(5):
        ticket = f"{place.tenant}-{number}"
        uses = [
            replicas[turn % 2].redeem(place.tenant, submission.request_id, ticket)
            for turn in range(6)
        ]
        assert sorted(await asyncio.gather(*uses)) == [*[False] * 5, True]
        later = await place.replica()
        assert not await later.redeem(place.tenant, submission.request_id, ticket)


# --- idempotency


async def test_a_hundred_submits_with_one_key_make_one_request(place: Place) -> None:
    replicas = [await place.replica(), await place.replica()]
    calls = [
        replicas[number % 2].submit(place.draft(), idempotency=key("k")) for number in range(100)
    ]
    async with asyncio.timeout(20):
        results = await asyncio.gather(*calls, return_exceptions=True)
    won = [it for it in results if not isinstance(it, BaseException)]
    codes = [it.code for it in results if isinstance(it, Refusal)]
    assert [it.outcome for it in won] == ["new"]
    assert codes == ["idempotency_in_progress"] * 99
    mine = [it for it in await place.worker.take_all() if it.request.tenant == place.tenant]
    assert [it.request.id for it in mine] == [won[0].request_id]
    claims = [decode_claim(it) for it in await on_log(place.log, CLAIMS)]
    assert 1 <= sum(it.tenant == place.tenant for it in claims) <= 2, "one per replica at most"
    await won[0].stream.close()


async def test_whoever_asks_to_attach_joins_and_a_finished_answer_is_replayed(
    place: Place,
) -> None:
    replicas = [await place.replica(), await place.replica()]
    first = await replicas[0].submit(place.draft(), idempotency=key("k"))
    joined = [
        await api.submit(place.draft(), idempotency=key("k", attach=True)) for api in replicas
    ]
    assert {(it.outcome, it.request_id) for it in joined} == {("attached", first.request_id)}
    reading = [asyncio.create_task(drained(it.stream)) for it in (first, *joined)]
    await place.worker.answer(await place.worker.take(), WORDS)
    for events in await asyncio.gather(*reading):
        assert text_of(events) == "".join(WORDS)
    again = await replicas[1].submit(place.draft(), idempotency=key("k"))
    assert (again.outcome, again.request_id) == ("replayed", first.request_id)
    assert text_of(await drained(again.stream)) == "".join(WORDS)
    assert await place.worker.take_all() == []
    for it in (first, *joined, again):
        await it.stream.close()


async def test_a_key_with_another_payload_is_refused(place: Place) -> None:
    replicas = [await place.replica(), await place.replica()]
    first = await replicas[0].submit(place.draft(), idempotency=key("k"))
    for api in replicas:
        other = key("k", "something else")
        await refused(api.submit(place.draft("else"), idempotency=other), "idempotency_key_reused")
    elsewhere = place.draft(tenant=f"{place.tenant}-2")
    second = await replicas[1].submit(elsewhere, idempotency=key("k", "something else"))
    assert second.outcome == "new", "keys of tenants do not meet"
    for it in (first, second):
        await it.stream.close()


async def test_a_claim_without_a_request_is_published_after_the_lease_under_its_own_id(
    place: Place,
) -> None:
    api = await place.replica(claim_lease_seconds=0.5)
    probe = await api.submit(place.draft())
    await probe.stream.close()
    time_ms = parse_request_id((await place.worker.take()).request.id).time_ms
    q = Partition(request_topic(POOL, "standard"), 3)
    orphan = Claim(
        tenant=place.tenant,
        key="k",
        fingerprint=key("k").fingerprint,
        request_id=make_request_id(time_ms, 1, 77),
        q=str(q),
        life_seconds=2 * 30.0 + DEFAULT_LIMITS.deadline_margin_seconds,
    )
    record_key = f"{place.tenant}\0k".encode()
    await place.log.partition_count(CLAIMS)
    partition = place.log.partition_of_key(CLAIMS, record_key)
    await place.worker._appender.append(CLAIMS, partition, encode(orphan), key=record_key)
    await asyncio.sleep(0.2)
    await refused(api.submit(place.draft(), idempotency=key("k")), "idempotency_in_progress")
    await asyncio.sleep(0.5)
    results = await asyncio.gather(
        *[api.submit(place.draft(), idempotency=key("k", attach=True)) for _ in range(5)]
    )
    assert {it.request_id for it in results} == {orphan.request_id}
    assert sorted(it.outcome for it in results) == [*["attached"] * 4, "new"]
    taken = await place.worker.take_all()
    assert [(it.request.id, it.q) for it in taken] == [(orphan.request_id, str(q))]
    assert taken[0].request.deadlines.total_seconds == 30.0, "its key is not free while it runs"
    await place.worker.answer(taken[0], WORDS)
    for it in results:
        assert text_of(await drained(it.stream)) == "".join(WORDS)
        await it.stream.close()


async def test_a_replica_that_starts_later_knows_the_keys_that_are_taken(place: Place) -> None:
    first = await (await place.replica()).submit(place.draft(), idempotency=key("k"))
    later = await place.replica()
    await refused(later.submit(place.draft(), idempotency=key("k")), "idempotency_in_progress")
    await first.stream.close()


async def test_live_keys_of_a_tenant_are_bounded(place: Place) -> None:
    api = await place.replica(claims_per_tenant=2)
    for name in ("a", "b"):
        await (await api.submit(place.draft(), idempotency=key(name))).stream.close()
    refusal = await refused(api.submit(place.draft(), idempotency=key("c")), "too_many_claims")
    assert refusal.retry_after_seconds is not None
    other = place.draft(tenant=f"{place.tenant}-2")
    await (await api.submit(other, idempotency=key("c"))).stream.close()


# --- cancels, models, bounds, the end


async def test_a_cancel_is_on_the_log_when_it_is_done(place: Place) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    for _ in range(2):
        await api.cancel(place.tenant, submission.request_id, "client")
    controls = [decode_control(it) for it in await on_log(place.log, CONTROL)]
    mine = [it for it in controls if it.tenant == place.tenant]
    assert {(it.kind, it.request_id) for it in mine} == {("cancel", submission.request_id)}
    assert len(mine) == 2
    await submission.stream.close()


async def test_models_are_known_by_the_workers_that_announce_them(place: Place) -> None:
    api = await place.replica(no_worker_seconds=0.5)
    entry = next(it for it in api.models() if it.name == place.worker.model)
    assert (entry.context_tokens, entry.state, entry.pool) == (512, "ready", POOL)
    assert api.check_model(place.worker.model) == entry
    await refused(api.submit(place.draft(model="nobody-has-it")), "model_not_found")
    await asyncio.sleep(1.0)
    refusal = await refused(api.submit(place.draft()), "no_worker")
    assert refusal.retry_after_seconds is not None
    await place.worker.announce("loading")
    async with asyncio.timeout(5):
        while next(it for it in api.models() if it.name == entry.name).state != "loading":
            await asyncio.sleep(0.01)
    await (await api.submit(place.draft())).stream.close()


async def test_open_streams_are_bounded_and_closing_one_makes_room(place: Place) -> None:
    api = await place.replica(open_streams=2)
    streams = [(await api.submit(place.draft())).stream for _ in range(2)]
    await refused(api.submit(place.draft()), "too_many_streams")
    await streams[0].close()
    await (await api.submit(place.draft())).stream.close()
    await streams[1].close()


async def test_a_drain_refuses_what_is_new_and_tells_open_streams_their_position(
    place: Place,
) -> None:
    api = await place.replica()
    submission = await api.submit(place.draft())
    taken = await place.worker.take()
    await place.worker.say(place.worker.started(taken), place.worker.tokens(taken, 0, *WORDS[:2]))
    found: list[Visible] = []
    while text_of(found) != "one two ":
        found += await submission.stream.next(1.0)
    waiting = asyncio.create_task(submission.stream.next(10.0))
    await asyncio.sleep(0.05)
    assert api.not_ready() is None
    await api.drain()
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(waiting, 3.0)
    assert submission.stream.position == 2
    assert api.not_ready() is not None
    await refused(api.submit(place.draft()), "shutting_down")
    await submission.stream.close()
