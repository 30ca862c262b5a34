"""Reading finished answers back from the log: what it costs as the log grows.

Without the result cache, `GET /v1/requests/{id}/stream` of a finished answer scans its reply partition
from about the time of its request on. Requests are answered until the log has a certain length; then
answers from its beginning and of just now are read back, some at a time, one request each.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.load import LoadClient, Order
from benchmarks.plain_kafka import count_records
from benchmarks.results_file import Run, percentile
from benchmarks.scale_report import show_late_followers
from benchmarks.stack import RunningStack, engine_words
from topics.catalogue import REPLIES

REPEATS = 3
LENGTHS = (2_000, 20_000, 200_000)
"""Answers on the log, 16 tokens each."""
READERS = 200
AT_ONCE = 8
TOKENS = 16
NO_CACHE = {"INFERLOG_LIMIT_RESULT_CACHE_SECONDS": "0", "INFERLOG_LIMIT_SCANS_PER_TENANT": "64"}


async def submit(client: httpx.AsyncClient, count: int) -> list[str]:
    """Ids of so many accepted requests."""
    ids = []
    for number in range(count):
        body = {"model": "scripted", "max_tokens": TOKENS, "prompt": f"read back {number}"}
        answer = await client.post(
            "/v1/requests", json={"endpoint": "/v1/completions", "body": body}
        )
        ids.append(str(answer.raise_for_status().json()["id"]))
    return ids


async def read_back(client: httpx.AsyncClient, ids: list[str]) -> list[float]:
    """Seconds for each whole answer; some at once."""
    waiting = iter(ids)
    waits: list[float] = []

    async def reader() -> None:
        for request_id in waiting:
            began_s = time.perf_counter()
            answer = await client.get(f"/v1/requests/{request_id}/stream")
            waits.append(time.perf_counter() - began_s)
            if not answer.raise_for_status().content.rstrip().endswith(b"[DONE]"):
                raise SystemExit(f"the answer {request_id} did not come back whole")

    await asyncio.gather(*(reader() for _ in range(AT_ONCE)))
    return waits


def client_of(stack: RunningStack) -> httpx.AsyncClient:
    """With the stack's key."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{stack.port}",
        headers={"Authorization": f"Bearer {stack.key}"},
        timeout=120,
        trust_env=False,
    )


def measure(length: int) -> dict[str, Any]:
    """One length on a fresh stack."""
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *engine_words("slots=1024"), environ=NO_CACHE) as stack,
        LoadClient() as load,
    ):

        async def submitted() -> list[str]:
            async with client_of(stack) as client:
                return await submit(client, READERS)

        early = uvloop.run(submitted())
        load.carry_out(
            Order(
                port=stack.port,
                key=stack.key,
                kind="accept",
                requests=length,
                clients=64,
                tokens=TOKENS,
            )
        )
        late = uvloop.run(submitted())
        stack.wait_for_ended(length + 2 * READERS, 600)

        def back(ids: list[str]) -> dict[str, float]:
            async def all_of_them() -> list[float]:
                async with client_of(stack) as client:
                    return await read_back(client, ids)

            before_s = stack.cpu_seconds()
            waits = uvloop.run(all_of_them())
            after_s = stack.cpu_seconds()
            return {
                "api_cpu_us_per_reader": (after_s["api"] - before_s["api"]) / len(ids) * 1e6,
                "broker_cpu_us_per_reader": (after_s["kafka"] - before_s["kafka"]) / len(ids) * 1e6,
                "p50_seconds": percentile(waits, 0.5),
                "p95_seconds": percentile(waits, 0.95),
            }

        back(late[: READERS // 4])  # warms up
        return {
            "answers": length,
            "reply_records": uvloop.run(count_records(stack.bootstrap, REPLIES)),
            "early": back(early),
            "late": back(late),
        }


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    words = parser.parse_args()
    run = Run("late_followers", {**vars(words), "readers": READERS, "at_once": AT_ONCE})
    measured = run.by_turns(words.lengths, words.repeats, lambda it: f"{it:,} answers", measure)
    figures = {"cases": measured}
    print(show_late_followers(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
