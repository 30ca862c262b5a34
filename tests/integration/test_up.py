"""`inferlog up` as a user meets it: a process of its own, real Kafka, the scripted engine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

from inferlog.local_ports import any_free
from tests.memory_stack import scripted_answer
from tests.running_up import clean_environ

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def inferlog(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferlog", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environ(),
        check=False,
    )


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


class Up:
    """A running `inferlog up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = any_free("127.0.0.1", 3)
        self.output = folder / "up.txt"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "inferlog", "up", "--engine", "scripted"),
                    *("--data-dir", str(folder), "--port", str(self.port)),
                    *("--api-replicas", "2", "--metrics-port", str(any_free("127.0.0.1", 3))),
                    *("--drain-seconds", "2", "--engine-option", "tokens_per_second=200"),
                ],
                stdout=out,
                stderr=out,
                env=clean_environ(),
            )

    def said(self) -> str:
        return self.output.read_text()

    def pids(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "up.json").read_text())["pids"]
        return found

    def key(self) -> str:
        return (self.folder / "api-keys").read_text().partition(":")[2].strip()

    def url(self, replica: int) -> str:
        return f"http://127.0.0.1:{self.port + 1 + replica}"

    def running(self) -> float:
        """Slots in use, by the worker's metrics."""
        port = json.loads((self.folder / "up.json").read_text())["metrics"]["worker-0"]
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        (line,) = re.findall(r"^inferlog_requests_running (.+)$", text, re.MULTILINE)
        return float(line)

    def send(self, *words: str) -> subprocess.CompletedProcess[str]:
        return inferlog("send", "--json", "--data-dir", str(self.folder), *words)


@pytest.fixture(scope="module")
def up(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        until(
            lambda: "Inferlog is up." in running.said() or running.process.poll() is not None,
            90,
            "not up in time",
        )
        assert running.process.poll() is None, running.said()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            try:
                running.process.wait(60)
            except subprocess.TimeoutExpired:
                running.process.kill()


def test_it_answers_and_never_prints_the_key_into_a_file(up: Up) -> None:
    done = up.send("hello", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["usage"]["completion_tokens"], answer["finish_reason"]) == (3, "length")
    key = up.key()
    assert key
    written = [up.output, *(up.folder / "logs").iterdir()]
    assert [path for path in written if key in path.read_text()] == []


def test_a_request_can_be_followed_through_the_log(up: Up) -> None:
    answer = json.loads(up.send("follow me", "--idempotency-key", "k1").stdout)
    again = json.loads(up.send("follow me", "--idempotency-key", "k1").stdout)
    assert again["replayed"]
    assert (again["request_id"], again["text"]) == (answer["request_id"], answer["text"])
    done = inferlog(
        "log", "--json", "--data-dir", str(up.folder), f"chatcmpl-{answer['request_id']}"
    )
    entries = json.loads(done.stdout)["entries"]
    at = [it["what"] for it in entries].index
    # under a key `Accepted` follows the request's acknowledgement: a worker may have begun by then
    for order in (["claim", "request", "accepted"], ["request", "started", "tokens", "finished"]):
        assert sorted(order, key=at) == order
    assert "follow me" not in done.stdout


def test_status_shows_the_worker_and_an_empty_queue(up: Up) -> None:
    done = inferlog("status", "--json", "--data-dir", str(up.folder))
    status = json.loads(done.stdout)
    assert [worker["state"] for worker in status["workers"]] == ["ready"]
    assert {tier["tier"]: tier["owned"] for tier in status["tiers"]} == dict.fromkeys(
        ("premium", "standard", "free", "batch"), 4
    )


def test_a_second_one_on_the_same_folder_or_port_is_refused_with_the_reason(
    up: Up, tmp_path: Path
) -> None:
    engine = ("up", "--engine", "scripted")
    same_folder = inferlog(*engine, "--data-dir", str(up.folder))
    assert same_folder.returncode == 1
    assert f"already up (pid {up.process.pid})" in same_folder.stderr
    same_port = inferlog(*engine, "--data-dir", str(tmp_path), "--port", str(up.port))
    assert same_port.returncode == 1
    assert f"port {up.port} on 127.0.0.1 is taken" in same_port.stderr


def test_an_unknown_engine_option_is_refused_before_anything_starts(tmp_path: Path) -> None:
    port = str(any_free("127.0.0.1", 2))
    options = ("--engine-option", "slotz=3", "--data-dir", str(tmp_path), "--port", port)
    done = inferlog("up", "--engine", "scripted", *options)
    assert done.returncode == 2
    assert "unknown engine option 'slotz'; did you mean slots?" in done.stderr
    assert "starting" not in done.stderr
    assert "Traceback" not in done.stderr


ASK: list[Any] = [{"role": "user", "content": "hello from the client"}]


def test_openais_client_asks_streams_and_is_told_what_is_wrong(up: Up) -> None:
    text = scripted_answer("hello from the client", 5)
    with OpenAI(base_url=f"http://127.0.0.1:{up.port}/v1", api_key=up.key()) as client:
        assert [it.id for it in client.models.list()] == ["scripted"]
        chat = client.chat.completions.create
        whole = chat(model="scripted", messages=ASK, max_tokens=5)
        assert whole.choices[0].message.content == text
        pieces = [*chat(model="scripted", messages=ASK, max_tokens=5, stream=True)]
        assert "".join(it.choices[0].delta.content or "" for it in pieces) == text
        assert pieces[-1].choices[0].finish_reason == "length"
        complete = client.completions.create
        prompt = ASK[0]["content"]
        assert complete(model="scripted", prompt=prompt, max_tokens=5).choices[0].text == text
        streamed = complete(model="scripted", prompt=prompt, max_tokens=5, stream=True)
        assert "".join(it.choices[0].text for it in streamed) == text
        with pytest.raises(NotFoundError, match="Known models: scripted"):
            chat(model="another", messages=ASK)
        with pytest.raises(BadRequestError) as bad:
            chat(model="scripted", messages=ASK, n=99)
        assert bad.value.param == "n"
        with pytest.raises(AuthenticationError):
            client.with_options(api_key="not-one-of-ours").models.list()


def test_openais_client_that_closes_a_stream_frees_the_slot(up: Up) -> None:
    with OpenAI(base_url=f"{up.url(0)}/v1", api_key=up.key()) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=ASK, max_tokens=100_000, stream=True
        )
        request_id = next(iter(stream)).id
        until(lambda: up.running() == 1, 10, "it runs in no slot")
        stream.close()
    until(lambda: up.running() == 0, 10, "the slot is still taken")
    with httpx.Client(headers={"Authorization": f"Bearer {up.key()}"}) as plain:
        told = plain.get(f"{up.url(1)}/v1/requests/{request_id}").json()
    assert told["status"] == "cancelled"


def test_openais_client_tries_again_by_itself_while_a_replica_is_started_anew(up: Up) -> None:
    os.kill(up.pids()["api-0"], signal.SIGKILL)
    with OpenAI(base_url=f"{up.url(0)}/v1", api_key=up.key(), max_retries=8) as client:
        answer = client.chat.completions.create(model="scripted", messages=ASK, max_tokens=2)
    assert answer.choices[0].message.content == scripted_answer(ASK[0]["content"], 2)
    until(lambda: "api-0 was ended by SIGKILL" in up.said(), 10, "the crash was not told")


@pytest.mark.parametrize("name", ["worker-0", "api-1", "kafka-1"])
def test_other_commands_are_told_the_present_process_of_what_was_killed(up: Up, name: str) -> None:
    first = up.pids()[name]
    os.kill(first, signal.SIGKILL)
    until(lambda: up.pids().get(name) != first, 10, "the dead process is still told")
    until(lambda: name in up.pids(), 40, "it was not started again")
    told = psutil.Process(up.pids()[name])
    assert told.ppid() == up.process.pid
    assert told.is_running()


def test_while_kafka_is_silent_every_answer_comes_in_time_and_the_replica_is_not_ready(
    up: Up,
) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    kafka = up.pids()["kafka-1"]
    with httpx.Client(
        base_url=up.url(0), headers={"Authorization": f"Bearer {up.key()}"}, timeout=30.0
    ) as client:
        before = client.post("/v1/chat/completions", json=body)
        known = f"/v1/requests/{before.headers['x-request-id']}"
        os.kill(kafka, signal.SIGSTOP)
        try:
            for method, path in (("POST", "/v1/chat/completions"), ("GET", known)):
                began_s = time.monotonic()
                answer = client.request(method, path, json=body if method == "POST" else None)
                assert time.monotonic() - began_s < 6.0
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
            until(lambda: client.get("/health/ready").status_code == 503, 10, "it says it is ready")
        finally:
            os.kill(kafka, signal.SIGCONT)
        until(lambda: client.get("/health/ready").status_code == 200, 20, "not ready any more")
        assert client.get(known).json()["status"] == "completed"
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_killed_worker_comes_back_and_the_end_leaves_nothing(up: Up) -> None:
    pids = up.pids()
    os.kill(pids["worker-0"], signal.SIGKILL)
    until(lambda: "worker-0 was ended by SIGKILL" in up.said(), 10, "the crash was not told")
    done = up.send("after the crash", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    started = psutil.Process(up.process.pid).children(recursive=True)
    assert len(started) >= 4
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", up.port))
    assert not (up.folder / "up.json").exists()
