"""`inferlog up` as a user meets it: a process of its own, real Kafka, the scripted engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from inferlog.local_ports import any_free

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def clean_environ() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERLOG_")}
    if cache := os.environ.get("INFERLOG_CACHE_DIR"):
        kept["INFERLOG_CACHE_DIR"] = cache
    return kept


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
                    *("--drain-seconds", "2"),
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
    key = (up.folder / "api-keys").read_text().partition(":")[2].strip()
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
    order = ["claim", "request", "accepted", "started", "tokens", "finished"]
    assert sorted(order, key=[it["what"] for it in entries].index) == order
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


def test_while_kafka_is_silent_every_answer_comes_in_time_and_the_replica_is_not_ready(
    up: Up,
) -> None:
    key = (up.folder / "api-keys").read_text().partition(":")[2].strip()
    url = f"http://127.0.0.1:{up.port + 1}"
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    kafka = up.pids()["kafka-1"]
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30.0
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
