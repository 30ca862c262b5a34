"""What the pipeline itself costs: the scripted engine behind real Kafka, client on the same machine.

Starts `inferlog up`, then measures accepting (POST /v1/requests → 202), whole chat answers and
streams, each several times; prints medians with their range and keeps the raw figures as JSON.
CPU is taken from process accounting, API and worker apart; broker and client are not counted.
"""

import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

REQUESTS = 1500
CLIENTS = 32
TOKENS = 16
REPEATS = 5
START_SECONDS = 90.0
RESULTS = Path(__file__).parent / "results"

Post = Callable[[httpx.AsyncClient, int], Awaitable[None]]


def body(number: int, *, stream: bool = False) -> dict[str, Any]:
    """A chat of its own prompt."""
    messages = [{"role": "user", "content": f"request {number} of the benchmark"}]
    return {"model": "scripted", "max_tokens": TOKENS, "messages": messages, "stream": stream}


async def accept(client: httpx.AsyncClient, number: int) -> None:
    """Durably accepted, nobody waits for the answer."""
    payload = {"endpoint": "/v1/chat/completions", "body": body(number)}
    answer = await client.post("/v1/requests", json=payload)
    assert answer.status_code == 202, answer.text


async def whole(client: httpx.AsyncClient, number: int) -> None:
    """The answer as one body."""
    answer = await client.post("/v1/chat/completions", json=body(number))
    assert answer.json()["usage"]["completion_tokens"] == TOKENS, answer.text


async def streamed(client: httpx.AsyncClient, number: int) -> None:
    """The answer as server-sent events, read to the end."""
    answer = await client.post("/v1/chat/completions", json=body(number, stream=True))
    assert answer.text.endswith("data: [DONE]\n\n")


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time of these processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def measure(
    client: httpx.AsyncClient, post: Post, parts: dict[str, list[psutil.Process]]
) -> dict[str, float]:
    """One repeat: requests/s and CPU-µs per request of API and worker."""
    before = {name: cpu_seconds(processes) for name, processes in parts.items()}
    numbers = iter(range(REQUESTS))

    async def run() -> None:
        for number in numbers:
            await post(client, number)

    begun_s = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(CLIENTS)))
    took_s = time.perf_counter() - begun_s
    await asyncio.sleep(1.0)  # what was only accepted runs to its end, and is counted
    spent = {name: cpu_seconds(processes) - before[name] for name, processes in parts.items()}
    return {
        "requests_per_second": REQUESTS / took_s,
        "api_cpu_us": spent["api"] / REQUESTS * 1e6,
        "worker_cpu_us": spent["worker"] / REQUESTS * 1e6,
    }


def processes_of(parent: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The API's and the worker's processes under `inferlog up`."""
    children = parent.children(recursive=True)
    return {
        name: [it for it in children if it.cmdline()[-1:] == [name] or name in it.cmdline()[2:5]]
        for name in ("api", "worker")
    }


async def run_all(url: str, key: str, parent: psutil.Process) -> dict[str, Any]:
    """All cases, interleaved, so that a slow minute of the machine meets all alike."""
    parts = processes_of(parent)
    cases: dict[str, Post] = {"accept": accept, "whole": whole, "streamed": streamed}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=60.0, trust_env=False
    ) as client:
        for repeat in range(REPEATS + 1):
            for name, post in cases.items():
                figures = await measure(client, post, parts)
                if repeat:  # the first round warms up
                    found[name].append(figures)
    return found


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians with the range."""
    for name, repeats in found.items():
        for figure in repeats[0]:
            values = [it[figure] for it in repeats]
            middle = statistics.median(values)
            print(f"{name:9} {figure:20} {middle:8.0f}  ({min(values):.0f} to {max(values):.0f})")


def wait_for_key(data_dir: Path, port: int, up: "subprocess.Popen[bytes]") -> str:
    """The key, once the API is ready."""
    until_s = time.monotonic() + START_SECONDS
    while time.monotonic() < until_s and up.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success:
                line = (data_dir / "api-keys").read_text().splitlines()[-1]
                return line.partition(":")[2]
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.3)
    raise SystemExit("inferlog up did not become ready")


def main() -> None:
    """Starts everything, measures, keeps the result, ends everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        command = [sys.executable, "-m", "inferlog", "up", "--engine", "scripted"]
        command += ["--data-dir", folder, "--port", str(port)]
        up = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            key = wait_for_key(data_dir, port, up)
            parent = psutil.Process(up.pid)
            found = asyncio.run(run_all(f"http://127.0.0.1:{port}", key, parent))
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(timeout=30)
    show(found)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    settings = {"requests": REQUESTS, "clients": CLIENTS, "tokens": TOKENS, "repeats": REPEATS}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "pipeline.json"
    kept = {"machine": machine, "settings": settings, "figures": found}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"kept in {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
