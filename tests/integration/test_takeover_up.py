"""`inferlog up` notices a killed worker and leaves its groups for it: nobody waits for its session."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inferlog.data_dir import first_key
from inferlog.local_ports import any_free
from tests.memory_stack import scripted_answer
from tests.running_up import clean_environ

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

SESSION_SECONDS = 40
ANSWER_TOKENS = 300
STREAMS = 8


class Up:
    """A running `inferlog up` whose workers' sessions outlast any patience."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        port = any_free("127.0.0.1", 2)
        metrics_port = any_free("127.0.0.1", workers + 1)
        words = [
            *("up", "--engine", "scripted", "--engine-option", "tokens_per_second=50"),
            *("--workers", str(workers), "--session-timeout-seconds", str(SESSION_SECONDS)),
            *("--data-dir", str(folder), "--port", str(port)),
            *("--metrics-port", str(metrics_port), "--drain-seconds", "0"),
        ]
        with (folder / "up.txt").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inferlog", *words],
                stdout=out,
                stderr=out,
                env=clean_environ(),
            )

    def said(self) -> str:
        return (self.folder / "up.txt").read_text()

    def state(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / "up.json").read_text())
        return found

    def pid(self, name: str) -> int | None:
        """None between a death and the next start."""
        pids = self.state()["pids"]
        assert isinstance(pids, dict)
        return pids.get(name)

    def wait_for(self, text: str, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline_s, self.said()
            time.sleep(0.05)


@pytest.fixture(params=[2, 1], ids=["with a standby", "alone"])
def up(
    request: pytest.FixtureRequest, kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("takeover-up"), request.param)
    try:
        running.wait_for("Inferlog is up.", 90)
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            running.process.kill()


async def stream(client: httpx.AsyncClient, url: str, prompt: str) -> tuple[str, float]:
    """The text, and the longest wait between two of its pieces."""
    body = {
        "model": "scripted",
        "stream": True,
        "max_tokens": ANSWER_TOKENS,
        "messages": [{"role": "user", "content": prompt}],
    }
    text, longest_s, last_s = "", 0.0, time.monotonic()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            longest_s = max(longest_s, time.monotonic() - last_s)
            last_s = time.monotonic()
            choices = json.loads(line[6:])["choices"]
            text += (choices[0]["delta"].get("content") or "") if choices else ""
    return text, longest_s


async def test_a_killed_worker_is_replaced_long_before_its_session_ends(up: Up) -> None:
    url = str(up.state()["url"])
    headers = {"Authorization": f"Bearer {first_key(up.folder / 'api-keys')}"}
    prompts = [f"sentence {index}" for index in range(STREAMS)]
    async with httpx.AsyncClient(headers=headers, timeout=60.0) as client:
        streams = [asyncio.create_task(stream(client, url, prompt)) for prompt in prompts]
        for name in ("worker-0", "worker-1"):
            if name not in str(up.state()["pids"]):
                continue
            await asyncio.sleep(1.5)
            first = up.pid(name)
            assert first is not None
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(10):
                while up.said().count("left 4 memberships") < int(name[-1]) + 1:
                    await asyncio.sleep(0.05)
                while up.pid(name) in {
                    None,
                    first,
                }:  # what other commands are told is kept up to date
                    await asyncio.sleep(0.05)
        answers = [await it for it in streams]
    for prompt, (text, longest_s) in zip(prompts, answers, strict=True):
        assert text == scripted_answer(prompt, ANSWER_TOKENS)
        assert longest_s < SESSION_SECONDS / 4
    assert max(longest_s for _, longest_s in answers) > 0.2, "somebody had to be replaced"
