"""Memory over volume: flat once caches are full, bounded for readers that stop reading.

The figures are kept as `benchmarks/results/memory.json`.
"""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.load import Kind, LoadClient, Order
from benchmarks.load_client import expected_text, prompt_of, said
from benchmarks.results_file import Run
from benchmarks.stack import RunningStack

pytestmark = [pytest.mark.soak, pytest.mark.kafka, pytest.mark.timeout(900)]

REQUESTS = 2000
CLIENTS = 64
TOKENS = 16
WARM_UP_BATCHES = 7  # the worker remembers the last 10,000 requests it ended
BATCHES = 3
FLAT = 1.05

READERS = 16
LONG_TOKENS = 4000
TOKENS_PER_SECOND = 400
TOP_LOGPROBS = 5
PER_READER_BYTES_MAX = 2 * 1024 * 1024
"""A mailbox (256 KiB), what was taken from it and rendered, and the server's write buffer."""
NO_CACHE = {"INFERLOG_LIMIT_RESULT_CACHE_SECONDS": "0"}
"""Answers that were finished are kept for a while, within a bound of their own, whoever reads them."""

TOPIC = "requests.default.standard"
PARTS = ("api", "worker")


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    """What the tests of this file found; kept when they are through."""
    settings = {
        "requests": REQUESTS,
        "clients": CLIENTS,
        "tokens": TOKENS,
        "warm_up_batches": WARM_UP_BATCHES,
        "readers": READERS,
        "long_tokens": LONG_TOKENS,
        "tokens_per_second": TOKENS_PER_SECOND,
    }
    run, found = Run("memory", settings), dict[str, Any]()
    yield found
    if {"rss_bytes", "stalled_rss_bytes"} <= found.keys():
        run.keep(found)


def memory(stack: RunningStack) -> dict[str, int]:
    return {part: stack.memory_bytes(part) for part in PARTS}


async def offsets(bootstrap: str) -> tuple[dict[int, int], dict[int, int]]:
    """Committed and end offset of each partition of the standard tier."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=bootstrap)
    await admin.start()
    await consumer.start()
    try:
        here = [TopicPartition(TOPIC, p) for p in consumer.partitions_for_topic(TOPIC) or ()]
        committed = await admin.list_consumer_group_offsets(f"inferlog.{TOPIC}", partitions=here)
        ends = await consumer.end_offsets(here)
        return (
            {it.partition: max(0, committed[it].offset) for it in here},
            {it.partition: ends[it] for it in here},
        )
    finally:
        await consumer.stop()
        await admin.close()


def test_three_batches_leave_memory_where_it_was(
    kafka_libs: Path, tmp_path: Path, figures: dict[str, Any]
) -> None:
    rss: list[dict[str, int]] = []
    with RunningStack(tmp_path) as stack, LoadClient() as load:
        asked = 0
        for batch in range(-WARM_UP_BATCHES, BATCHES):
            kinds: tuple[Kind, Kind] = ("whole", "streamed")
            for kind in kinds:
                order = Order(
                    port=stack.port,
                    key=stack.key,
                    kind=kind,
                    requests=REQUESTS // 2,
                    clients=CLIENTS,
                    tokens=TOKENS,
                    first=asked,
                    check=True,  # complete, in order, its own: the client gives up otherwise
                )
                load.carry_out(order)
                asked += order.requests
            stack.wait_for_ended(asked)
            time.sleep(1.0)
            if batch >= 0:
                rss.append(memory(stack))
        until_s = time.monotonic() + 30
        while True:
            committed, ends = asyncio.run(offsets(stack.bootstrap))
            if committed == ends or time.monotonic() > until_s:
                break
            time.sleep(0.5)
        assert sum(ends.values()) == asked
        assert committed == ends
    figures["rss_bytes"] = rss
    for part in PARTS:
        values = [it[part] for it in rss]
        assert max(values) <= FLAT * values[0], (part, values)


class StalledReader:
    """Asks for a long answer and does not read it, until it does."""

    def __init__(self, stack: RunningStack, number: int) -> None:
        self._number = number
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect(("127.0.0.1", stack.port))
        body = json.dumps(
            {
                "model": "scripted",
                "max_tokens": LONG_TOKENS,
                "stream": True,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
                "messages": [{"role": "user", "content": prompt_of(number)}],
            }
        )
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Authorization: Bearer {stack.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body.encode())

    def read_all(self) -> str:
        """The text of the whole answer."""
        parts: list[bytes] = []
        with self._socket:
            while data := self._socket.recv(1 << 20):
                parts.append(data)
        _, _, chunked = b"".join(parts).partition(b"\r\n\r\n")
        order = Order(port=0, key="", kind="streamed", requests=1, clients=1, tokens=LONG_TOKENS)
        body = unchunked(chunked)
        assert body.endswith(b"data: [DONE]\n\n")
        assert said(order, body) == expected_text(order, self._number)
        return body.decode()


def unchunked(data: bytes) -> bytes:
    """The body behind `Transfer-Encoding: chunked`."""
    found: list[bytes] = []
    at = 0
    while True:
        line = data.index(b"\r\n", at)
        size = int(data[at:line], 16)
        if not size:
            return b"".join(found)
        found.append(data[line + 2 : line + 2 + size])
        at = line + 2 + size + 2


def test_readers_that_stop_reading_cost_a_bounded_amount_and_lose_nothing(
    kafka_libs: Path, tmp_path: Path, figures: dict[str, Any]
) -> None:
    options = ("--engine-option", f"tokens_per_second={TOKENS_PER_SECOND}")
    with RunningStack(tmp_path, *options, environ=NO_CACHE) as stack, LoadClient() as load:
        warm = Order(
            port=stack.port,
            key=stack.key,
            kind="streamed",
            requests=512,
            clients=CLIENTS,
            tokens=200,
        )
        load.carry_out(warm)
        stack.wait_for_ended(warm.requests)
        time.sleep(1.0)
        before = memory(stack)
        readers = [StalledReader(stack, 10_000 + i) for i in range(READERS)]
        stack.wait_for_ended(warm.requests + READERS, LONG_TOKENS / TOKENS_PER_SECOND + 60)
        time.sleep(1.0)
        after = memory(stack)
        assert stack.metric("api", "inferlog_mailbox_drops_total") == READERS
        figures["stalled_rss_bytes"] = [before, after]
        figures["stalled_readers"] = READERS
        for reader in readers:
            reader.read_all()
    answer_bytes = LONG_TOKENS * 600
    assert answer_bytes > PER_READER_BYTES_MAX  # else nothing would have had to be held back
    grown = (after["api"] - before["api"]) / READERS
    assert grown <= PER_READER_BYTES_MAX, (before, after)
