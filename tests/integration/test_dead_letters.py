"""`inferlog dead-letters` on a real Kafka, with a worker that runs what is redriven."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from consumers.inference.service import InferenceService
from consumers.inference.settings import WorkerSettings
from core.limits import DEFAULT_LIMITS
from inferlog.cli import build
from inferlog.letters import LetterBox, read_letters
from inferlog.problems import CommandFailed
from inferlog.redrive import Redriver
from schemas.codec import UndecodableRecord, decode_reply, decode_request, encode
from schemas.envelope import request_headers
from schemas.ids import make_request_id, parse_request_id
from schemas.operations import DeadLetter, LetterMark, Start
from schemas.replies import Accepted, Events, Failed, Finished
from schemas.requests import COMPLETIONS, Body, Request
from topics.catalogue import DEAD_LETTERS, REPLIES, TopicSettings, catalogue, request_topic
from topics.kafka import KafkaLog
from topics.ports import Log, Partition, Record
from topics.settings import ClusterSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]

POOL = "letters"
TOPIC = request_topic(POOL, "standard")
SECRET = "what-nobody-should-see"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def log(kafka_bootstrap: str) -> AsyncIterator[KafkaLog]:
    """A cluster whose pool is served by one scripted worker."""
    log = KafkaLog(kafka_bootstrap)
    await log.create(catalogue(POOL, TopicSettings()))
    settings = WorkerSettings(
        cluster=ClusterSettings(bootstrap=kafka_bootstrap),
        engine="scripted",
        worker_id="letters",
        metrics_port=0,
        pool=POOL,
        tiers=("standard",),
    )
    service = InferenceService(settings)
    try:
        await service.start()
        async with asyncio.timeout(30):
            while not service.owns_all():
                await asyncio.sleep(0.05)
        yield log
    finally:
        await service.stop()
        await log.close()


class Commands:
    """`inferlog dead-letters` as it is typed, of one tenant of its own."""

    def __init__(self, bootstrap: str, folder: Path, tenant: str) -> None:
        self.where = ("--bootstrap", bootstrap, "--data-dir", str(folder))
        self.tenant = tenant

    async def run(self, *words: str) -> tuple[int, str, str]:
        typed = ["dead-letters", *words, *self.where]
        runner = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
        result = await asyncio.to_thread(runner.invoke, build("dead-letters"), typed)
        return result.exit_code, result.stdout, result.stderr

    async def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        exit_code, out, err = await self.run(*words, "--json")
        assert exit_code == code, out + err
        found: dict[str, Any] = json.loads(out)
        return found

    async def listed(self, *words: str) -> list[dict[str, Any]]:
        found = await self.json("list", "--tenant", self.tenant, *words)
        return list(found["letters"])


@pytest.fixture
def typed(kafka_bootstrap: str, log: KafkaLog, tmp_path: Path) -> Commands:
    return Commands(kafka_bootstrap, tmp_path, f"tenant-{secrets.token_hex(4)}")


def a_request(tenant: str, **more: Any) -> Request:
    body = Body(prompt=f"{SECRET} please", max_tokens=3)
    fields: dict[str, Any] = {"tier": "standard", "model": "scripted", "body": body, **more}
    moment_ms = int(time.time() * 1000)
    return Request(
        id=make_request_id(moment_ms, 1, secrets.randbits(62)),
        tenant=tenant,
        pool=POOL,
        endpoint=COMPLETIONS,
        **fields,
    )


def a_letter(request: Request, reason: str = "poison", **more: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "offset": secrets.randbits(40),
        "value": encode(request),
        "request_id": request.id,
        **more,
    }
    return DeadLetter(
        topic=TOPIC,
        partition=0,
        time_ms=0,
        reason=reason,
        detail="as a test has it",
        key=b"k",
        headers=request_headers(request.id, request.tenant, 0),
        tenant=request.tenant,
        starts=(Start(epoch=4, starts=1, worker="w1"), Start(epoch=9, starts=2, worker="w2")),
        **fields,
    )


async def put(log: KafkaLog, *letters: DeadLetter) -> list[str]:
    """Appends them; returns their addresses."""
    appender = await log.appender()
    try:
        acks = [await appender.append(DEAD_LETTERS, 0, encode(it)) for it in letters]
    finally:
        await appender.close()
    return [f"{it.partition}/{it.offset}" for it in acks]


async def records(log: Log, partition: Partition) -> list[Record]:
    end = (await log.end_offsets([partition]))[partition]
    tail = await log.tail({partition: 0})
    found: list[Record] = []
    try:
        while tail.position(partition) < end:
            found += await tail.read(0.5)
    finally:
        await tail.close()
    return found


async def outcome(log: KafkaLog, request_id: str) -> Finished | Failed:
    """The terminal of a request, behind its `Accepted`."""
    here = Partition(REPLIES, parse_request_id(request_id).reply_partition)
    async with asyncio.timeout(20):
        while True:
            accepted = False
            for record in await records(log, here):
                try:
                    reply = decode_reply(record.value)
                except UndecodableRecord:
                    continue  # the broker is shared: another test puts garbage on `replies`
                accepted = accepted or (isinstance(reply, Accepted) and reply.id == request_id)
                for event in reply.events if isinstance(reply, Events) else ():
                    if event.id == request_id and isinstance(event, Finished | Failed):
                        assert accepted
                        return event


async def requests_of(log: KafkaLog, tenant: str) -> list[Request]:
    found = []
    for index in range(await log.partition_count(TOPIC)):
        for record in await records(log, Partition(TOPIC, index)):
            try:
                request = decode_request(record.value)
            except UndecodableRecord:
                continue
            if request.tenant == tenant:
                found.append(request)
    return found


async def test_letters_are_listed_by_filters_and_a_record_parked_twice_once(
    log: KafkaLog, typed: Commands
) -> None:
    first, second = a_letter(a_request(typed.tenant)), a_letter(a_request(typed.tenant), "stale_id")
    places = await put(log, first, second, first)
    assert [it["letter"] for it in await typed.listed()] == places[:2]
    assert [it["letter"] for it in await typed.listed("--reason", "stale_id")] == [places[1]]
    assert [it["letter"] for it in await typed.listed("--limit", "1")] == [places[1]]
    named = f"cmpl-{first.request_id}"
    assert [it["letter"] for it in await typed.listed("--request-id", named)] == [places[0]]
    assert await typed.listed("--since", "2090-01-01") == []
    assert len(await typed.listed("--since", "1h")) == 2
    code, out, _ = await typed.run("list", "--tenant", typed.tenant)
    assert code == 0
    assert str(second.request_id) in out


async def test_a_letter_is_shown_without_what_was_asked(log: KafkaLog, typed: Commands) -> None:
    letter = a_letter(a_request(typed.tenant))
    (place,) = await put(log, letter)
    for named in (place, str(letter.request_id)):
        code, out, err = await typed.run("show", named)
        assert (code, err) == (0, "")
        assert SECRET not in out
        assert "number 2 by w2 under epoch 9" in out
    code, out, err = await typed.run("show", place, "--body")
    assert SECRET in out
    assert "may be private" in err
    shown = await typed.json("show", place)
    assert SECRET not in json.dumps(shown)
    assert shown["starts"][0] == {"epoch": 4, "starts": 1, "worker": "w1"}


async def test_a_redrive_is_a_new_request_that_says_of_which(
    log: KafkaLog, typed: Commands
) -> None:
    old = a_request(typed.tenant)
    (place,) = await put(log, a_letter(old))
    (done,) = (await typed.json("redrive", place))["redriven"]
    end = await outcome(log, done["new_id"])
    assert isinstance(end, Finished)
    assert end.counts == (3,)
    (new,) = await requests_of(log, typed.tenant)
    assert (new.id, new.redrive_of) == (done["new_id"], old.id)
    assert (new.body, new.tier, new.model) == (old.body, old.tier, old.model)
    (listed,) = await typed.listed()
    assert (listed["state"], listed["redriven_as"]) == ("redriven", [new.id])


async def test_a_second_redrive_asks_for_again(log: KafkaLog, typed: Commands) -> None:
    letter = a_letter(a_request(typed.tenant))
    (place,) = await put(log, letter)
    await typed.json("redrive", place)
    refused = await typed.json("redrive", str(letter.request_id), code=1)
    assert "--again redrives it nevertheless" in refused["failed"][0]["error"]
    assert len(await requests_of(log, typed.tenant)) == 1
    (again,) = (await typed.json("redrive", place, "--again"))["redriven"]
    await outcome(log, again["new_id"])
    assert len(await requests_of(log, typed.tenant)) == 2


async def test_of_two_redrives_at_once_one_runs(log: KafkaLog, typed: Commands) -> None:
    (place,) = await put(log, a_letter(a_request(typed.tenant)))
    box = await read_letters(log)
    letter, read_to = box.find(place), box.ends[0]
    drivers = [Redriver(log, await log.appender(), DEFAULT_LIMITS) for _ in range(3)]
    tries = [it.redrive(letter, read_to, again=False, raw=False) for it in drivers]
    results = await asyncio.gather(*tries, return_exceptions=True)
    for it in drivers:
        await it.close()
    lost = [it for it in results if isinstance(it, CommandFailed)]
    assert len(lost) == 2
    assert "somebody else saw to" in str(lost[0])
    assert len(await requests_of(log, typed.tenant)) == 1
    (listed,) = await typed.listed()
    assert len(listed["redriven_as"]) == 1, "the losers took their marks back"


async def test_a_letter_that_was_parked_twice_is_redriven_once(
    log: KafkaLog, typed: Commands
) -> None:
    letter = a_letter(a_request(typed.tenant))
    first, copy = await put(log, letter, letter)
    await typed.json("redrive", copy)
    assert (await typed.json("redrive", first, code=1))["redriven"] == []
    assert len(await requests_of(log, typed.tenant)) == 1


async def test_all_that_match_are_redriven_and_what_cannot_be_is_told(
    log: KafkaLog, typed: Commands
) -> None:
    good = [a_letter(a_request(typed.tenant)) for _ in range(2)]
    bad = a_letter(a_request(typed.tenant, body=Body(prompt="x", n=99)))
    await put(log, *good, bad, a_letter(a_request(typed.tenant), "stale_id"))
    words = ("redrive", "all", "--tenant", typed.tenant, "--reason", "poison")
    told = await typed.json(*words, code=1)
    assert len(told["redriven"]) == 2
    assert "would be parked again: 'n'" in told["failed"][0]["error"]
    told = await typed.json(*words, code=1)
    assert told["redriven"] == [], "what was redriven is left out"
    assert len(await requests_of(log, typed.tenant)) == 2


async def test_a_dropped_letter_is_listed_no_more_and_dropping_twice_is_no_error(
    log: KafkaLog, typed: Commands
) -> None:
    (place,) = await put(log, a_letter(a_request(typed.tenant)))
    assert await typed.json("drop", place) == {"dropped": [place], "dropped_before": []}
    assert await typed.json("drop", place) == {"dropped": [], "dropped_before": [place]}
    assert await typed.listed() == []
    (listed,) = await typed.listed("--dropped")
    assert listed["state"] == "dropped"
    refused = await typed.json("redrive", place, code=1)
    assert "was dropped" in refused["failed"][0]["error"]


async def test_what_cannot_be_decoded_is_redriven_raw_alone(log: KafkaLog, typed: Commands) -> None:
    it = a_request(typed.tenant)
    letter = a_letter(it, "undecodable", value=encode(it)[:-1] + b',"of_a_later_version":1}')
    (place,) = await put(log, letter)
    assert (await typed.run("show", place))[0] == 0
    refused = await typed.json("redrive", place, code=1)
    assert "--raw publishes its bytes as they are" in refused["failed"][0]["error"]
    assert (await typed.json("redrive", place, "--raw"))["redriven"] == [
        {"letter": place, "new_id": None}
    ]
    here = Partition(TOPIC, 0)
    assert letter.value in [record.value for record in await records(log, here)]
    failed = await outcome_of_raw(log, it.id)
    assert failed.error.code == "undecodable", "this worker cannot decode it either"


async def outcome_of_raw(log: KafkaLog, request_id: str) -> Failed:
    here = Partition(REPLIES, parse_request_id(request_id).reply_partition)
    async with asyncio.timeout(20):
        while True:
            for record in await records(log, here):
                try:
                    reply = decode_reply(record.value)
                except UndecodableRecord:
                    continue
                for event in reply.events if isinstance(reply, Events) else ():
                    if event.id == request_id and isinstance(event, Failed):
                        return event


async def test_a_letter_that_holds_a_part_of_its_record_cannot_run(
    log: KafkaLog, typed: Commands
) -> None:
    (place,) = await put(log, a_letter(a_request(typed.tenant), value=b"x" * 1024 * 1024))
    for more in ((), ("--raw",)):
        refused = await typed.json("redrive", place, *more, code=1)
        assert "holds only a part" in refused["failed"][0]["error"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("show", "0/999999999"), 1, "there is no letter at 0/999999999"),
        (("drop", "01a20c93-aca9-7000-8210-9863ce6b69c4"), 1, "there is no letter of request"),
        (("redrive", "nonsense"), 2, "neither the place of a letter"),
        (("list", "--since", "yesterday"), 2, "a time ago such as 90m"),
        (("list", "--request-id", "nonsense"), 2, "is no request id"),
    ],
)
async def test_what_is_typed_wrong_is_a_sentence(
    typed: Commands, words: tuple[str, ...], code: int, said: str
) -> None:
    exit_code, out, err = await typed.run(*words)
    assert (exit_code, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_an_older_letter_is_left_out_once_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferlog.letters.LETTERS_MAX", 2)
    box = LetterBox()
    first, *others = [a_letter(a_request("t")) for _ in range(3)]
    marks = [LetterMark(partition=0, offset=offset, action="dropped") for offset in (0, 2)]
    for offset, it in enumerate([first, first, *others, *marks]):
        box.feed(Record(DEAD_LETTERS, 0, offset, offset, None, encode(it), ()))
    assert box.cut
    assert [(it.place, it.state) for it in box.letters.values()] == [
        ((0, 2), "dropped"),
        ((0, 3), "parked"),
    ]
    with pytest.raises(CommandFailed):
        box.find("0/1")
