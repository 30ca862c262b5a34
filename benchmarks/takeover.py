"""From the SIGKILL of a worker to the next token of each of its requests.

`python -m benchmarks.takeover --kills 20` starts `inferlog up --workers 2` with the scripted engine on a
real Kafka, keeps streams running, kills the workers in turn, and reads from `replies` when each orphaned
request went on. Prints one JSON object: the pauses at p50, p95 and max, in seconds, and whether any token
was lost or came twice.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from core.stream import Key, Reader
from inferlog.data_dir import first_key
from inferlog.local_ports import any_free
from schemas.codec import decode_reply
from schemas.replies import Finished, Started, Tokens
from topics.catalogue import REPLIES
from topics.kafka import KafkaLog
from topics.ports import Partition

TOKENS_PER_SECOND = 40
ANSWER_TOKENS = 100_000


@dataclass
class Watch:
    """What the log shows of the requests: their speaker, and when each was last heard."""

    speaker: dict[Key, str] = field(default_factory=dict)
    heard_s: dict[Key, float] = field(default_factory=dict)
    ended: set[Key] = field(default_factory=set)
    faults: int = 0
    killed_s: float = 0.0
    orphans: dict[Key, float | None] = field(default_factory=dict)

    def kill(self, worker: str) -> None:
        """The requests of this worker wait from now on."""
        self.killed_s = time.monotonic()
        self.orphans = {
            key: None for key, it in self.speaker.items() if it == worker and key not in self.ended
        }

    def see(self, event: object, now_s: float) -> None:
        """A visible event."""
        if isinstance(event, Started):
            self.speaker[event.tenant, event.id] = event.worker
        elif isinstance(event, Tokens):
            key = (event.tenant, event.id)
            self.heard_s[key] = now_s
            if self.orphans.get(key, 0.0) is None and self.speaker[key] != self.dead:
                self.orphans[key] = now_s - self.killed_s
        elif isinstance(event, Finished):
            self.ended.add((event.tenant, event.id))

    dead: str = ""


async def tail(bootstrap: str, watch: Watch) -> None:
    """Feeds the watch for ever."""
    log = KafkaLog(bootstrap, client_id="takeover-bench")
    count = await log.partition_count(REPLIES)
    readers = [Reader() for _ in range(count)]
    reading = await log.tail({Partition(REPLIES, index): 0 for index in range(count)})
    try:
        while True:
            for record in await reading.read(max_wait_seconds=0.5):
                now_s = time.monotonic()
                for event in readers[record.partition].feed(decode_reply(record.value)):
                    watch.see(event, now_s)
    finally:
        await reading.close()
        await log.close()


async def stream(client: httpx.AsyncClient, url: str, index: int) -> None:
    """Opens an answer and reads it until it is cancelled."""
    body = {
        "model": "scripted",
        "stream": True,
        "max_tokens": ANSWER_TOKENS,
        "messages": [{"role": "user", "content": f"prompt {index}"}],
    }
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        expected = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"]
            for text in (choice[0]["delta"].get("content") or "").split() if choice else ():
                number = int(text.partition(".")[2])
                if number != expected:
                    raise AssertionError(f"token {number} where {expected} was due")
                expected += 1


async def measure(kills: int, streams: int, folder: Path) -> dict[str, object]:
    """Runs it all."""
    port = any_free("127.0.0.1", 2)
    words = [
        *("up", "--engine", "scripted", "--workers", "2", "--data-dir", str(folder)),
        *("--port", str(port), "--engine-option", f"tokens_per_second={TOKENS_PER_SECOND}"),
        *("--engine-option", "context_tokens=1000000", "--metrics-port", "29464"),
    ]
    with (folder / "up.txt").open("wb") as out:
        up = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferlog", *words, stdout=out, stderr=out
        )
    tasks: list[asyncio.Task[None]] = []
    pauses: list[float] = []
    missing = 0
    try:
        state_file = folder / "up.json"
        while not state_file.exists():
            await asyncio.sleep(0.1)
            if up.returncode is not None:
                raise RuntimeError((folder / "up.txt").read_text())
        state = json.loads(state_file.read_text())
        watch = Watch()
        headers = {"Authorization": f"Bearer {first_key(folder / 'api-keys')}"}
        limits = httpx.Limits(max_connections=streams + 4)
        timeout = httpx.Timeout(60.0)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
            tasks.append(asyncio.create_task(tail(state["bootstrap"], watch)))
            clients = [asyncio.create_task(stream(client, state["url"], i)) for i in range(streams)]
            tasks += clients
            while len(watch.heard_s) < streams:
                await asyncio.sleep(0.05)
            for turn in range(kills):
                await asyncio.sleep(4.0)  # the one killed before is back, and owns its share
                index = turn % 2
                pid = await worker_pid(folder, index)
                watch.dead = f"{socket.gethostname()}-{port}-{index}"
                watch.kill(watch.dead)
                os.kill(pid, signal.SIGKILL)
                until_s = time.monotonic() + 30
                while None in watch.orphans.values() and time.monotonic() < until_s:
                    await asyncio.sleep(0.01)
                missing += sum(it is None for it in watch.orphans.values())
                pauses += [it for it in watch.orphans.values() if it is not None]
                watch.dead = ""
            faults = [it.exception() for it in clients if it.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(ProcessLookupError):
            up.terminate()
        await up.wait()
    return {
        "kills": kills,
        "streams": streams,
        "orphans": len(pauses),
        "never_resumed": missing,
        "broken_streams": len(faults),
        "p50_seconds": round(statistics.median(pauses), 3),
        "p95_seconds": round(sorted(pauses)[int(0.95 * (len(pauses) - 1))], 3),
        "max_seconds": round(max(pauses), 3),
        "cores": os.cpu_count(),
    }


async def worker_pid(folder: Path, index: int) -> int:
    """The process id of a worker, waited for while it is being started again."""
    while True:
        state: dict[str, dict[str, int]] = json.loads((folder / "up.json").read_text())
        if (pid := state["pids"].get(f"worker-{index}")) is not None:
            return pid
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=16)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(chosen.kills, chosen.streams, Path(folder)))))


if __name__ == "__main__":
    main()
