"""What a takeover costs by the number of requests that were running, beside a backlog, on a long log.

    python -m benchmarks.recovery

For each case a worker on a real Kafka runs so many requests (the suspects of the takeover to come),
and so many more wait behind them on the same topic. On `replies` lie records of other workers: some are
old, some came just before the suspects, some come while they run. The worker is killed; `inferlog up` starts
it again, and the new process takes the partitions over: it must read what had been said of the suspects, from
the positions of the last commit on, which are some seconds old: all that came beside, and just before, but
nothing old, and nothing of the backlog.
In the last case there is a second worker, which runs a share of the requests and takes over the others.
Measured: from the kill to the next token of each request (start of the process included), and what the new
process takes.
"""

import argparse
import asyncio
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results_file import Run, percentile
from benchmarks.scale_report import show_recovery
from benchmarks.stack import RunningStack
from core.stream import Key, Reader, Visible
from schemas.codec import decode_reply, encode
from schemas.envelope import request_headers
from schemas.ids import RANDOM_BITS, make_request_id
from schemas.replies import Events, Started, Tokens
from schemas.requests import COMPLETIONS, Body, Deadlines, Request
from topics.catalogue import REPLIES, request_topic
from topics.kafka import KafkaLog
from topics.ports import Partition

TOKENS_PER_SECOND = 5
HISTORY_SECONDS = 10.0  # for so long the requests speak before the kill
ANSWER_TOKENS = 100_000
RESUME_SECONDS = 120.0
TOPIC = request_topic("default", "standard")
REPEATS = 2
OTHER_TENANT = "of other workers"
OTHERS = 16
"""Requests of other workers, each with a token in each of their records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many running requests, requests behind them, records of other workers on `replies` (old, from just
    before the requests, beside them), and workers that are not killed.
    """

    suspects: int
    backlog: int = 0
    older: int = 0
    before: int = 0
    beside: int = 0
    standby: int = 0


CASES = (
    Case(suspects=10),
    Case(suspects=100),
    Case(suspects=1000),
    Case(suspects=1000, backlog=100_000),
    Case(suspects=100, older=100_000),
    Case(suspects=100, before=100_000),
    Case(suspects=100, beside=20_000),
    Case(suspects=100, beside=100_000),
    Case(suspects=100, standby=1),
)
KILLED = "worker-0"
OLD_SECONDS = 12.0
"""More than a worker takes to learn of the ends of `replies`, and to commit them."""


@dataclass
class Heard:
    """Of every request: who runs it, and when the first visible token of each epoch came."""

    first_s: dict[Key, dict[int, float]] = field(default_factory=dict)
    worker: dict[Key, str] = field(default_factory=dict)

    def see(self, event: Visible, now_s: float) -> None:
        """Notes the worker, and the first token of an epoch."""
        if isinstance(event, Started):
            self.worker[event.tenant, event.id] = event.worker
        elif isinstance(event, Tokens):
            self.first_s.setdefault((event.tenant, event.id), {}).setdefault(event.epoch, now_s)

    def run_by(self, process: str) -> frozenset[Key]:
        """Requests that speak, of this worker process of `inferlog up`."""
        number = process.rpartition("-")[2]
        return frozenset(
            it for it in self.first_s if self.worker.get(it, "").endswith(f"-{number}")
        )

    def since(self, killed_s: float, keys: Collection[Key]) -> list[float]:
        """Of these requests: seconds from the kill to the first token of an epoch after it."""
        firsts = ([it for it in self.first_s[key].values() if it > killed_s] for key in keys)
        return [min(first) - killed_s for first in firsts if first]


async def listen(log: KafkaLog, heard: Heard) -> None:
    """Feeds `heard` from now on, for ever."""
    count = await log.partition_count(REPLIES)
    readers = [Reader(watched=lambda key: key[0] != OTHER_TENANT) for _ in range(count)]
    tail = await log.tail({Partition(REPLIES, index): 0 for index in range(count)})
    try:
        while True:
            for record in await tail.read(max_wait_seconds=0.5):
                now_s = time.monotonic()
                for event in readers[record.partition].feed(decode_reply(record.value)):
                    heard.see(event, now_s)
    finally:
        await tail.close()


async def produce(log: KafkaLog, count: int) -> None:
    """Appends so many requests, spread over all partitions of the topic."""
    partitions = await log.partition_count(TOPIC)
    replies = await log.partition_count(REPLIES)
    appender = await log.appender(linger_ms=5)
    deadlines = Deadlines(start_seconds=3600.0, first_token_seconds=3600.0, total_seconds=3600.0)
    try:
        for start in range(0, count, 1000):
            acks = []
            for number in range(start, min(start + 1000, count)):
                now_ms = time.time_ns() // 1_000_000
                request = Request(
                    id=make_request_id(now_ms, number % replies, secrets.randbits(RANDOM_BITS)),
                    tenant="default",
                    tier="standard",
                    model="scripted",
                    endpoint=COMPLETIONS,
                    body=Body(prompt=f"prompt {number} " + "word " * 60, max_tokens=ANSWER_TOKENS),
                    deadlines=deadlines,
                )
                headers = request_headers(request.id, request.tenant, now_ms)
                partition = number % partitions
                acks.append(appender.append(TOPIC, partition, encode(request), headers=headers))
            for ack in acks:
                await ack
    finally:
        await appender.close()


async def others_speak(log: KafkaLog, records: int) -> None:
    """Appends so many records of other workers' tokens, spread over all reply partitions."""
    partitions = await log.partition_count(REPLIES)
    now_ms = time.time_ns() // 1_000_000
    ids = [
        [make_request_id(now_ms, index, secrets.randbits(RANDOM_BITS)) for _ in range(OTHERS)]
        for index in range(partitions)
    ]
    appender = await log.appender(linger_ms=5)
    common: Any = {"tenant": OTHER_TENANT, "q": "requests.other.standard/0", "offset": 0}
    try:
        for start in range(0, records, 1000):
            acks = []
            for number in range(start, min(start + 1000, records)):
                index, seq = number % partitions, number // partitions
                events = [
                    Tokens(
                        id=it, seq=seq, token_ids=(seq,), text=f"other {seq} ", epoch=1, **common
                    )
                    for it in ids[index]
                ]
                acks.append(appender.append(REPLIES, index, encode(Events(events=tuple(events)))))
            for ack in acks:
                await ack
    finally:
        await appender.close()


async def until(count: int, values: Callable[[], Sized], seconds: float, what: str) -> None:
    """Waits until `values()` has so many."""
    until_s = time.monotonic() + seconds
    while len(values()) < count:
        if time.monotonic() > until_s:
            raise SystemExit(f"{len(values())} of {count} {what} in {seconds:.0f} s")
        await asyncio.sleep(0.02)


async def measure(case: Case) -> dict[str, Any]:
    """One round on a fresh stack."""
    suspects = case.suspects
    options = (f"slots={suspects}", f"tokens_per_second={TOKENS_PER_SECOND}")
    words = [
        word for it in (*options, "context_tokens=1000000") for word in ("--engine-option", it)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningStack(Path(folder), "--workers", str(1 + case.standby), *words) as stack,
    ):
        log = KafkaLog(stack.bootstrap, client_id="recovery-bench")
        heard = Heard()
        listening = asyncio.create_task(listen(log, heard))
        try:
            idle_bytes = stack.memory_bytes("worker")
            if case.older:
                await others_speak(log, case.older)
                await asyncio.sleep(OLD_SECONDS)
            await others_speak(log, case.before)
            await produce(log, suspects)
            await until(suspects, lambda: heard.first_s, 60.0, "requests spoke")
            began_s = time.monotonic()
            await produce(log, case.backlog)
            await others_speak(log, case.beside)
            await asyncio.sleep(max(0.0, began_s + HISTORY_SECONDS - time.monotonic()))
            running_bytes = stack.memory_bytes("worker")
            orphans = heard.run_by(KILLED)
            if not orphans:
                raise SystemExit(f"{KILLED} runs none of the requests")
            killed_s = time.monotonic()
            os.kill(stack.pids[KILLED], signal.SIGKILL)
            await until(
                len(orphans),
                lambda: heard.since(killed_s, orphans),
                RESUME_SECONDS,
                "requests went on",
            )
            pauses = heard.since(killed_s, orphans)
            new = {} if case.standby else of_the_new_process(stack)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await log.close()
        return {
            **asdict(case),
            "orphans": len(orphans),
            "started_from_the_backlog": len(heard.first_s) - suspects,
            "kill_to_next_token_seconds": {
                "p50": round(percentile(pauses, 0.5), 3),
                "p95": round(percentile(pauses, 0.95), 3),
                "max": round(max(pauses), 3),
            },
            "memory_mib": {
                "idle_before": round(idle_bytes / 2**20, 1),
                "running_before_kill": round(running_bytes / 2**20, 1),
            },
            "new_process": new,
        }


def of_the_new_process(stack: RunningStack) -> dict[str, float]:
    """What the killed worker's successor has taken so far."""
    (worker,) = stack.processes("worker")
    cpu = worker.cpu_times()
    return {
        "resumed": stack.metric("worker", "inferlog_suspects_total", 'verdict="resume"'),
        "takeover_seconds_of_4_tiers": round(
            stack.metric("worker", "inferlog_takeover_seconds_sum"), 3
        ),
        "cpu_seconds_since_start": round(cpu.user + cpu.system, 2),
        "peak_mib": round(peak_bytes(worker.pid) / 2**20, 1),
    }


def name_of(case: Case) -> str:
    """For people."""
    return ", ".join(f"{value:,} {name}" for name, value in asdict(case).items() if value)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever held (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell a process's high-water mark")


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each case")
    repeats = parser.parse_args().repeats
    settings = {"repeats": repeats, "tokens_per_second": TOKENS_PER_SECOND, "others": OTHERS}
    run = Run("recovery", {**settings, "cases": [asdict(it) for it in CASES]})
    figures = {"cases": run.by_turns(CASES, repeats, name_of, lambda it: asyncio.run(measure(it)))}
    print(show_recovery(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
