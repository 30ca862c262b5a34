"""One to four API replicas on one port, one to eight workers: what a request costs then.

Whole answers of 16 tokens over HTTP, closed loop, 64 clients whose keys belong to eight tenants: the
requests of one tenant go to four record keys at most, so that one tenant alone could keep no more than
four workers busy. On two cores nothing becomes faster by more processes; what is asked here is what
each request costs when there are more of them, each with its own fetches, heartbeats and caches. Hence
also: what all of them take while nothing is asked, and how many records on `replies` a request has.
"""

import argparse
import secrets
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import LoadClient, Order
from benchmarks.plain_kafka import count_records
from benchmarks.results_file import Run
from benchmarks.scale_report import show_replicas
from benchmarks.stack import PARTS, RunningStack, engine_words
from topics.catalogue import REPLIES

REPEATS = 3
REQUESTS = 3_000
CLIENTS = 64
TENANTS = 8
TOKENS = 16
SETTLE_SECONDS = 1.0
REST_SECONDS = 5.0
SHAPES = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (1, 8), (2, 2))
"""API replicas, workers."""


def write_keys(folder: Path) -> list[str]:
    """One key for each tenant, where `inferlog up` looks for them."""
    keys = [f"il-{secrets.token_urlsafe(24)}" for _ in range(TENANTS)]
    path = folder / "api-keys"
    path.touch(mode=0o600)
    path.write_text("".join(f"tenant-{i}:{key}\n" for i, key in enumerate(keys)))
    return keys


def measure(shape: tuple[int, int], requests: int) -> dict[str, Any]:
    """One shape on a fresh stack; a round before warms up."""
    replicas, workers = shape
    words = ["--api-replicas", str(replicas), "--workers", str(workers)]
    with tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder:
        keys = write_keys(Path(folder))
        with (
            RunningStack(Path(folder), *words, *engine_words("slots=1024")) as stack,
            LoadClient() as load,
        ):
            order = Order(
                port=stack.port,
                key=keys[0],
                keys=tuple(keys),
                kind="whole",
                requests=requests,
                clients=CLIENTS,
                tokens=TOKENS,
            )
            load.carry_out(order)
            stack.wait_for_ended(requests)
            time.sleep(SETTLE_SECONDS)
            resting = stack.cpu_seconds()
            time.sleep(REST_SECONDS)
            rested = stack.cpu_seconds()
            records = uvloop.run(count_records(stack.bootstrap, REPLIES))
            before = stack.cpu_seconds()
            carried = load.carry_out(replace(order, first=requests))
            stack.wait_for_ended(2 * requests)
            after = stack.cpu_seconds()
            records = uvloop.run(count_records(stack.bootstrap, REPLIES)) - records
            memory = {part: stack.memory_bytes(part) for part in PARTS}
    figures: dict[str, Any] = {
        f"{part}_cpu_us_per_request": (after[part] - before[part]) / requests * 1e6
        for part in after
    }
    return figures | {
        "replicas": replicas,
        "workers": workers,
        "requests_per_second": requests / carried.seconds,
        "reply_records_per_request": records / requests,
        "at_rest_cpu_ms_per_second": {
            part: (rested[part] - resting[part]) / REST_SECONDS * 1e3 for part in rested
        },
        "client_cpu_us_per_request": carried.cpu_seconds / requests * 1e6,
        "memory_bytes": memory,
    }


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each shape")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in each measurement")
    words = parser.parse_args()
    settings = {**vars(words), "shapes": SHAPES, "tenants": TENANTS, "clients": CLIENTS}
    run = Run("replicas", settings)
    measured = run.by_turns(
        SHAPES,
        words.repeats,
        lambda it: f"{it[0]} API and {it[1]} workers",
        lambda it: measure(it, words.requests),
    )
    figures = {"cases": measured}
    print(show_replicas(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
