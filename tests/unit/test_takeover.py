"""The demo's kill: who spoke and where another went on is read from the log, and nothing is glossed over."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inferlog import up
from inferlog.demo_needs import TWO_WORKERS_MB, how_many_workers
from inferlog.problems import CommandFailed
from inferlog.progress import Reports
from inferlog.settings import DemoCommand
from inferlog.supervisor import Child, ChildSpec
from inferlog.takeover import KILL_AFTER_TOKENS, STORY, STORY_TOKENS, Show, Takeover
from inferlog.timeline import Entry, shortened
from inferlog.witness import Account, Stretch, Witness
from schemas.codec import encode
from schemas.ids import make_request_id
from schemas.replies import AnyEvent, Events, Fence, Finished, Started, Tokens, TokenUsage
from schemas.requests import CHAT, RequestInfo
from tests.memory_stack import scripted_answer
from topics.catalogue import REPLIES, TopicSettings, catalogue
from topics.memory import MemoryLog

Q, OFFSET, REPLY_PARTITION = "requests.p.standard/0", 3, 1
SEAM = KILL_AFTER_TOKENS + 6
PIECES = scripted_answer(STORY, STORY_TOKENS).split(" ")[:-1]


def started(request_id: str, epoch: int, count: int, worker: str) -> Started:
    return Started(
        id=request_id,
        tenant="t",
        q=Q,
        offset=OFFSET,
        epoch=epoch,
        starts=1,
        counts=(count,),
        info=RequestInfo(CHAT, "scripted", "standard"),
        worker=worker,
    )


def token(request_id: str, epoch: int, seq: int) -> Tokens:
    return Tokens(
        id=request_id,
        tenant="t",
        q=Q,
        offset=OFFSET,
        epoch=epoch,
        seq=seq,
        token_ids=(seq,),
        text=f"{PIECES[seq]} ",
        finish_reason="length" if seq == STORY_TOKENS - 1 else None,
    )


def end(request_id: str, epoch: int) -> Finished:
    return Finished(
        id=request_id,
        tenant="t",
        q=Q,
        offset=OFFSET,
        epoch=epoch,
        counts=(STORY_TOKENS,),
        usage=TokenUsage(1, STORY_TOKENS),
        finish_reasons=("length",),
    )


def records(request_id: str, seam: int) -> list[Events | Fence]:
    """Worker w-0 says the tokens before `seam`, w-1 the others; w-0 mutters on behind the fence."""
    first: list[AnyEvent] = [
        started(request_id, 1, 0, "w-0"),
        *(token(request_id, 1, i) for i in range(seam)),
    ]
    second: list[AnyEvent] = [
        started(request_id, 5, seam, "w-1"),
        *(token(request_id, 5, i) for i in range(seam, STORY_TOKENS)),
    ]
    if seam == STORY_TOKENS:
        return [Events(events=(*first, end(request_id, 1)))]
    late = (token(request_id, 1, seam),)
    return [
        *(Events(events=(it,)) for it in first),
        Fence(epoch=5, qs=(Q,)),
        Events(events=late),
        *(Events(events=(it,)) for it in second),
        Events(events=(end(request_id, 5),)),
    ]


def new_id() -> str:
    return make_request_id(int(time.time() * 1000), REPLY_PARTITION, 7)


def test_an_account_knows_who_spoke_and_where_another_went_on() -> None:
    account = Account(new_id())
    for record in records(account.request_id, SEAM):
        if isinstance(record, Fence):
            assert account.speaker() == Stretch("w-0", 1, 0)
            assert account.after(Stretch("w-0", 1, 0)) is None
        account.feed(record)
    assert account.after(Stretch("w-0", 1, 0)) == Stretch("w-1", 5, SEAM) == account.speaker()
    assert (account.tokens, account.ended) == (STORY_TOKENS, True)
    assert account.text == scripted_answer(STORY, STORY_TOKENS)


def test_an_account_takes_no_other_request_for_its_own() -> None:
    account = Account(new_id())
    for record in records(make_request_id(1, REPLY_PARTITION, 8), SEAM):
        account.feed(record)
    assert (account.stretches, account.tokens) == ([], 0)


async def log_with(records: Sequence[Events | Fence]) -> MemoryLog:
    log = MemoryLog()
    await log.create(catalogue("p", TopicSettings()))
    await append(log, records)
    return log


async def append(log: MemoryLog, records: Sequence[Events | Fence]) -> None:
    appender = await log.appender()
    for record in records:
        await appender.append(REPLIES, REPLY_PARTITION, encode(record))


async def test_a_token_that_the_log_does_not_hold_is_an_error_and_not_waited_for() -> None:
    request_id = new_id()
    witness = await Witness.open(await log_with(records(request_id, SEAM)), request_id)
    await witness.until_token(STORY_TOKENS)
    await witness.until_end()
    with pytest.raises(CommandFailed, match="does not hold 121 tokens"):
        await witness.until_token(STORY_TOKENS + 1, seconds_max=0.2)
    await witness.close()


class Running(Child):
    """A child that is a process of this test."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        super().__init__(
            ChildSpec(name=name, arguments=(), environ={}, log_file=Path(), stop_seconds=1), print
        )
        self.process = process

    @property
    def pid(self) -> int | None:
        return self.process.pid


@pytest.fixture
def workers() -> Iterator[dict[str, Running]]:
    code = [sys.executable, "-c", "import time; time.sleep(600)"]
    found = {name: Running(name, subprocess.Popen(code)) for name in ("w-0", "w-1")}
    yield dict(found)
    for child in found.values():
        child.process.kill()
        child.process.wait()


def stream_of(
    request_id: str, numbers: Sequence[int], usage: int = STORY_TOKENS
) -> httpx.AsyncClient:
    """A client whose server sends these tokens of the answer."""
    lines = []
    for place, number in enumerate(numbers):
        body = {"choices": [{"delta": {"content": f"{PIECES[number]} "}}]}
        lines.append(f"id: {place + 1}\ndata: {json.dumps(body)}\n\n")
    last = {
        "choices": [{"delta": {}, "finish_reason": "length"}],
        "usage": {"completion_tokens": usage},
    }
    text = "".join(lines) + f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"
    headers = {"X-Request-Id": request_id}
    answer = httpx.MockTransport(lambda _: httpx.Response(200, text=text, headers=headers))
    return httpx.AsyncClient(transport=answer, base_url="http://demo")


async def shown(workers: dict[str, Running], numbers: Sequence[int], seam: int = SEAM) -> Takeover:
    """Until w-0 is dead the log holds what it said; then what w-1 says comes."""
    request_id = new_id()
    said = records(request_id, seam)
    fence = next((i for i, it in enumerate(said) if isinstance(it, Fence)), len(said))
    log = await log_with(said[:fence])

    async def go_on() -> None:
        while "w-0" in workers and workers["w-0"].process.poll() is None:
            await asyncio.sleep(0.01)
        await append(log, said[fence:])

    going_on = asyncio.create_task(go_on())
    try:
        async with stream_of(request_id, numbers) as client:
            return await Show(workers.get, log).run(client, "scripted")
    finally:
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)


async def test_the_one_that_speaks_is_killed_and_the_seam_is_marked(
    workers: dict[str, Running], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = await shown(workers, range(STORY_TOKENS))
    assert workers["w-0"].process.wait(5) == -signal.SIGKILL
    assert workers["w-1"].process.poll() is None
    assert (seen.killed, seen.successor, seen.seam) == ("w-0", "w-1", SEAM)
    assert (seen.tokens, seen.lost, seen.repeated, seen.flawless()) == (STORY_TOKENS, 0, 0, True)
    said = capsys.readouterr().out
    before, _, after = said.partition(f"    <<< w-1 goes on with token {SEAM} after ")
    assert before.rstrip().endswith(PIECES[SEAM - 1])
    assert after.split(">>>\n")[1].startswith(PIECES[SEAM])
    killed = said.partition(f"    <<< SIGKILL to w-0, pid {workers['w-0'].pid}")[0]
    assert killed.rstrip().endswith(PIECES[KILL_AFTER_TOKENS - 1])


@pytest.mark.parametrize(
    ("numbers", "lost", "repeated"),
    [
        ([*range(SEAM), *range(SEAM + 1, STORY_TOKENS)], 1, STORY_TOKENS - SEAM - 1),
        ([*range(SEAM), SEAM - 1, *range(SEAM, STORY_TOKENS - 1)], 1, STORY_TOKENS - SEAM),
    ],
    ids=["a token is missing at the seam", "a token comes twice at the seam"],
)
async def test_what_a_client_missed_or_met_twice_is_found(
    workers: dict[str, Running], numbers: list[int], lost: int, repeated: int
) -> None:
    seen = await shown(workers, numbers)
    assert (seen.lost, seen.repeated, seen.as_logged) == (lost, repeated, False)
    assert not seen.flawless()
    assert "AND THE TEXT DIFFERS FROM THE LOG" in "\n".join(seen.lines())


async def test_no_seam_is_claimed_where_none_was(workers: dict[str, Running]) -> None:
    with pytest.raises(CommandFailed, match="no seam"):
        await shown(workers, range(STORY_TOKENS), seam=STORY_TOKENS)


async def test_nobody_is_killed_whom_the_log_does_not_name(workers: dict[str, Running]) -> None:
    gone = workers.pop("w-0")
    gone.process.kill()
    gone.process.wait()
    with pytest.raises(CommandFailed, match="no such worker runs"):
        await shown(workers, range(STORY_TOKENS))
    assert workers["w-1"].process.poll() is None


SEEN = Takeover(
    request_id="r",
    killed="worker-1",
    killed_pid=4711,
    successor="worker-0",
    seam=30,
    pause_seconds=0.4,
    kill_seconds=0.5,
    tokens=120,
    lost=0,
    repeated=0,
    as_logged=True,
    each_token_known=False,
)


def test_what_was_checked_is_said_as_it_is() -> None:
    assert (
        SEEN.lines()[0]
        == "Seam:   worker-1 (pid 4711) said tokens 0 to 29; worker-0 went on with token 30."
    )
    assert SEEN.lines()[2] == "Result: 120 tokens, 0 lost, 0 repeated."
    assert "not promised" in SEEN.lines()[3]
    assert "each token's own number" in replace(SEEN, each_token_known=True).lines()[3]
    assert not replace(SEEN, lost=1).flawless()
    assert not replace(SEEN, repeated=1).flawless()
    assert not replace(SEEN, as_logged=False).flawless()


def test_a_short_timeline_joins_token_events_of_one_epoch_alone() -> None:
    def entry(what: str, how: str) -> Entry:
        return Entry(0, what, "replies/0@0", how)

    entries = [
        entry("acquired", "before the request"),
        entry("accepted", "chat"),
        entry("tokens", "tokens 0 to 0 (epoch 1)"),
        entry("tokens", "tokens 1 to 2 (epoch 1)"),
        entry("tokens", "tokens 3 to 3 (epoch 1)"),
        entry("tokens", "tokens 4 to 4, INVISIBLE: of an ended epoch (epoch 1)"),
        entry("fence", "a"),
        entry("fence", "a"),
        entry("tokens", "tokens 4 to 9 (epoch 7)"),
    ]
    assert [(it.what, it.how) for it in shortened(entries)] == [
        ("accepted", "chat"),
        ("tokens", "3 events: tokens 0 to 0 ... tokens 3 to 3 (epoch 1)"),
        ("tokens", "tokens 4 to 4, INVISIBLE: of an ended epoch (epoch 1)"),
        ("fence", "a"),
        ("fence", "a"),
        ("tokens", "tokens 4 to 9 (epoch 7)"),
    ]
    assert shortened([]) == []


def test_a_second_worker_needs_room_or_a_wish() -> None:
    room_mb = TWO_WORKERS_MB["vllm"]
    assert how_many_workers(DemoCommand(engine="vllm"), room_mb) == (2, "")
    count, why = how_many_workers(DemoCommand(engine="vllm"), room_mb - 1)
    assert count == 1
    assert "waits for its restart" in why
    assert how_many_workers(DemoCommand(engine="vllm", demo_workers=2), 1) == (2, "")
    assert how_many_workers(DemoCommand(engine="scripted"), 500) == (2, "")


def test_reports_do_not_fall_into_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    reports = Reports(lambda line: f"12:00:00  {line}")
    reports("before")
    with reports.held():
        reports("meanwhile")
        assert capsys.readouterr().err == "12:00:00  before\n"
    reports("after")
    assert capsys.readouterr().err == "12:00:00  meanwhile\n12:00:00  after\n"


def test_what_is_told_to_a_terminal_that_is_gone_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = Path(os.devnull).open()  # noqa: SIM115  to write there is an OSError
    monkeypatch.setattr(sys, "stderr", gone)
    reports = Reports(str)
    reports("before")
    with reports.held():
        reports("meanwhile")
    up.report("after")
    gone.close()
