"""Faults of API replicas and of clients (rows 4, 5, 13, 14 and 15 of the matrix)."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import Load
from tests.faults.operation import scripted_answer
from tests.faults.recovery import percentile
from tests.faults.results import keep_row
from tests.faults.running_stack import RunningStack
from tests.faults.verdict import view

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]


def running_requests(stack: RunningStack) -> float:
    """Requests in the engines of all workers, by their metrics."""
    total = 0.0
    state = json.loads((stack.folder / "up.json").read_text())
    for name, port in state["metrics"].items():
        if name.startswith("worker"):
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
            lines = [it for it in text.splitlines() if it.startswith("inferlog_requests_running ")]
            total += float(lines[0].split()[1])
    return total


async def until_idle(stack: RunningStack, seconds: float = 15.0) -> None:
    """Returns when no slot is held any more."""
    async with asyncio.timeout(seconds):
        while await asyncio.to_thread(running_requests, stack):
            await asyncio.sleep(0.1)


async def test_a_replica_dies_and_its_readers_go_on_elsewhere(
    stack: RunningStack, load: Load
) -> None:
    """Row 4: streams are resumed on the other replica, from the position that was seen."""
    # enough of them, and long enough, that some are open whenever it dies
    async with load(
        stack, 201, per_second=40.0, kinds=("stream", "keyed"), max_tokens=(60, 90)
    ) as clients:
        await asyncio.sleep(2.5)
        stack.signal("api-0", signal.SIGKILL)
    assert any(it.resumes for it in clients.history if it.kind == "stream")


@pytest.fixture(scope="module")
def unhurried(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Ten tokens a second: one program can read 200 streams and see each token when it comes."""
    options = ("tokens_per_second=10", "slots=400")
    running = RunningStack(tmp_path_factory.mktemp("unhurried"), workers=2, engine_options=options)
    yield running
    running.end()


@pytest.mark.slow
async def test_200_open_streams_outlive_their_replica(unhurried: RunningStack, load: Load) -> None:
    """Row 4: all of them were open on one replica; each resumes with no gap and nothing twice."""
    stack = unhurried
    async with load(
        stack, 202, requests=200, per_second=100.0, kinds=("stream",), max_tokens=(150, 150)
    ) as clients:
        clients.streams_go_to = stack.replicas[0]
        open_ones = await clients.reading(200)
        for it in open_ones:
            it.longest_pause_s = 0.0
        stack.signal("api-0", signal.SIGKILL)
    assert all(it.resumes and it.text == it.expected() for it in open_ones)
    elsewhere = {
        it.request_id
        for it in clients.attempts
        if it.action == "resume" and it.result == "ok" and it.replica == stack.replicas[1]
    }
    pauses_s = [it.longest_pause_s for it in open_ones]
    keep_row(
        "a replica killed with open streams (row 4)",
        {
            "open_streams": len(open_ones),
            "resumed": sum(bool(it.resumes) for it in open_ones),
            "resumed_on_the_other_replica": len(elsewhere),
            "whole_answers": sum(it.text == it.expected() for it in open_ones),
            "violations": len(clients.wrong),
            "pause_p50_seconds": percentile(pauses_s, 0.5),
            "pause_max_seconds": max(pauses_s),
        },
    )
    assert elsewhere


async def test_a_key_finds_what_a_dead_replica_had_begun(stack: RunningStack, load: Load) -> None:
    """Row 5: the replica dies between the ack and its answer; a retry runs nothing a second time."""
    async with load(stack, 203, per_second=30.0, kinds=("keyed",), ok_share=1.0):
        for number in range(3):
            await asyncio.sleep(2.0)
            stack.signal(f"api-{number % 2}", signal.SIGKILL)


async def test_one_key_from_100_clients_and_after_a_restart(stack: RunningStack) -> None:
    """Row 13: over two replicas, with a replica that was started anew in between."""
    body = {"model": "scripted", "prompt": "only once", "max_tokens": 20}
    headers = {"Authorization": f"Bearer {stack.key}", "Idempotency-Key": "row-13"}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        headers=headers, timeout=30.0, trust_env=False, limits=limits
    ) as client:

        async def post(index: int) -> httpx.Response:
            return await client.post(f"{stack.replicas[index % 2]}/v1/completions", json=body)

        answers = await asyncio.gather(*(post(index) for index in range(100)))
        assert {it.status_code for it in answers} <= {200, 409}
        stack.signal("api-1", signal.SIGKILL)
        await stack.healthy()
        again = [await post(index) for index in range(2)]
        assert [it.headers.get("idempotent-replayed") for it in again] == ["true", "true"]
    texts = {it.text for it in [*answers, *again] if it.status_code == 200}
    assert [json.loads(text)["choices"][0]["text"] for text in texts] == [
        scripted_answer("only once", 20)
    ]
    found = await view(stack.bootstrap)
    copies = [key for key, them in found.requests().items() if them[0].body.prompt == "only once"]
    assert len(copies) == 1


@pytest.fixture(scope="module")
def short_lives(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Claims live 10 s, and two tenants have keys."""
    folder = tmp_path_factory.mktemp("lives")
    (folder / "api-keys").write_text("default:a-key-of-one\nother:a-key-of-another\n")
    (folder / "api-keys").chmod(0o600)
    more = (
        *("--limit-total-seconds", "3", "--limit-claim-life-seconds", "10"),
        *("--limit-deadline-margin-seconds", "1", "--limit-start-seconds", "3"),
    )
    running = RunningStack(folder, more=more)
    yield running
    running.end()


@pytest.mark.slow
async def test_a_key_is_free_again_after_its_life_and_another_tenants_all_along(
    short_lives: RunningStack,
) -> None:
    """Row 13: after the time to live, and for another tenant."""
    body = {"model": "scripted", "prompt": "again", "max_tokens": 4}
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:

        async def post(key: str) -> httpx.Response:
            return await client.post(
                f"{short_lives.replicas[0]}/v1/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "short"},
            )

        first, again = await post("a-key-of-one"), await post("a-key-of-one")
        assert again.headers["idempotent-replayed"] == "true"
        other = await post("a-key-of-another")
        assert "idempotent-replayed" not in other.headers
        await asyncio.sleep(11.0)
        later = await post("a-key-of-one")
    ids = [it.headers["x-request-id"] for it in (first, again, other, later)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.slow
async def test_1000_idle_streams_are_held_and_let_go(stack: RunningStack) -> None:
    """Row 14: they cost memory, not each other; closing them frees every slot."""
    api = {name: it for name, it in stack.processes().items() if name.startswith("api")}
    before = {name: it.memory_info().rss for name, it in api.items()}
    headers = {"Authorization": f"Bearer {stack.key}"}
    limits = httpx.Limits(max_connections=1100)
    async with httpx.AsyncClient(
        headers=headers, timeout=60.0, trust_env=False, limits=limits
    ) as client:

        async def hold(number: int) -> None:
            body = {"model": "scripted", "prompt": f"{number} never ends", "stream": True}
            url = f"{stack.replicas[number % 2]}/v1/completions"
            async with client.stream("POST", url, json=body) as answer:
                assert answer.status_code == 200
                async for _ in answer.aiter_lines():
                    pass

        held = [asyncio.create_task(hold(number)) for number in range(1000)]
        await asyncio.sleep(12.0)
        assert not any(it.done() for it in held)
        assert await asyncio.to_thread(running_requests, stack) == 1000
        grown = {name: it.memory_info().rss - before[name] for name, it in api.items()}
        assert max(grown.values()) / 500 < 200 * 1024, grown
        body = {"model": "scripted", "prompt": "in between", "max_tokens": 3}
        answer = await client.post(f"{stack.replicas[0]}/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"] == scripted_answer("in between", 3)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    await until_idle(stack, 30.0)


async def test_who_does_not_read_or_closes_half_is_no_burden(
    stack: RunningStack, load: Load
) -> None:
    """Row 14: a reader that stalls, and one that only shuts its side, beside others that read on."""
    port = int(stack.replicas[0].rpartition(":")[2])
    body = json.dumps(
        {"model": "scripted", "prompt": "unread", "max_tokens": 100_000, "stream": True}
    )
    request = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {stack.key}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    async with load(stack, 204, requests=60, ok_share=1.0) as clients:
        with (
            socket.create_connection(("127.0.0.1", port)) as stalled,
            socket.create_connection(("127.0.0.1", port)) as half,
        ):
            stalled.sendall(request)
            half.sendall(request)
            half.shutdown(socket.SHUT_WR)
            while sum(1 for it in clients.history if it.ended_s) < 50:
                await asyncio.sleep(0.1)
    await until_idle(stack)


async def test_leaving_at_any_token_and_cancelling_frees_the_slot(
    stack: RunningStack, load: Load
) -> None:
    """Row 15: disconnects and cancels at random tokens; what had ended stays as it ended."""
    kinds = ("closed", "cancelled")
    async with load(stack, 205, requests=150, per_second=40.0, kinds=kinds, ok_share=1.0):
        pass
    await until_idle(stack)
    clients = Clients(stack.replicas, stack.key, seed=206)
    done = await clients.one("whole")
    url = f"{stack.replicas[1]}/v1/requests/{done.request_id}/cancel"
    headers = {"Authorization": f"Bearer {stack.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=20.0, trust_env=False) as client:
        late = await client.post(url)
    await clients.close()
    assert late.json()["status"] == "completed"
