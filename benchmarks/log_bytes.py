"""What a request leaves on the log: records and bytes on each topic.

Streams of 150 tokens whose prompts have 500 words, 64 at a time, 25 tokens a second each. Bytes are those
of the broker's log files, so that Kafka's own per batch and per record are in them; indexes are not.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import LoadClient, Order
from benchmarks.plain_kafka import count_records
from benchmarks.results_file import Run
from benchmarks.scaling_report import show_log_bytes
from benchmarks.stack import RunningStack, engine_words
from topics.catalogue import CLAIMS, CONTROL, FENCES, REPLIES, USAGE, request_topic

TOPICS = (request_topic("default", "standard"), REPLIES, USAGE, CLAIMS, CONTROL, FENCES)
REQUESTS = 256
STREAMS = 64
TOKENS = 150
WORDS = 500
TOKENS_PER_SECOND = 25


def on_disk(folder: Path) -> dict[str, int]:
    """Bytes of each topic's log files."""
    return {
        topic: sum(
            it.stat().st_size
            for it in folder.rglob("*.log")
            if it.parent.name.rpartition("-")[0] == topic
        )
        for topic in TOPICS
    }


def records(bootstrap: str) -> dict[str, int]:
    """Records ever appended to each topic."""
    return {topic: uvloop.run(count_records(bootstrap, topic)) for topic in TOPICS}


def measure(requests: int) -> dict[str, Any]:
    """On a fresh stack."""
    options = engine_words("slots=1024", f"tokens_per_second={TOKENS_PER_SECOND}")
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), *options) as stack,
        LoadClient() as load,
    ):
        bytes_before, records_before = on_disk(Path(folder)), records(stack.bootstrap)
        load.carry_out(
            Order(
                port=stack.port,
                key=stack.key,
                kind="streamed",
                requests=requests,
                clients=STREAMS,
                tokens=TOKENS,
                prompt_words=WORDS,
            )
        )
        stack.wait_for_ended(requests)
        bytes_after, records_after = on_disk(Path(folder)), records(stack.bootstrap)
    return {
        topic: {
            "bytes_per_request": (bytes_after[topic] - bytes_before[topic]) / requests,
            "records_per_request": (records_after[topic] - records_before[topic]) / requests,
        }
        for topic in TOPICS
    }


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS)
    words = parser.parse_args()
    settings = {
        **vars(words),
        "streams": STREAMS,
        "tokens": TOKENS,
        "prompt_words": WORDS,
        "tokens_per_second": TOKENS_PER_SECOND,
    }
    run = Run("log_bytes", settings)
    figures = {"topics": run.once("one round", partial(measure, words.requests))}
    print(show_log_bytes(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
