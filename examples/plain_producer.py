"""Asks for an answer through Kafka alone, with nothing but aiokafka (see docs/topic-producers.md).

    python examples/plain_producer.py --bootstrap 127.0.0.1:9092 --model scripted "Hello there"

Prints the answer as it comes. Exit code: 0 if it finished, 1 if it did not.
"""

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

FENCES = TopicPartition("fences", 0)


def make_id(reply_partition: int) -> str:
    """A UUIDv7 whose 12 bits `rand_a` are the reply partition. Needs a clock that is about right."""
    number = time.time_ns() // 1_000_000 << 80 | 7 << 76 | reply_partition << 64
    text = f"{number | 2 << 62 | secrets.randbits(62):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


async def beginning(
    reader: AIOKafkaConsumer, partition: int, position: int
) -> tuple[dict[str, int], int]:
    """The epochs that hold at `position` of the reply partition, and where to read from."""
    owners: dict[int, dict[str, Any]] = {}
    reader.assign([FENCES])
    await reader.seek_to_beginning(FENCES)
    end = (await reader.end_offsets([FENCES]))[FENCES]
    while await reader.position(FENCES) < end:
        for message in (await reader.getmany(FENCES, timeout_ms=500)).get(FENCES, ()):
            said = json.loads(message.value)
            kind, epoch = said["record"], said.get("epoch", message.offset)
            if kind != "fenced":
                owners.setdefault(epoch, {"qs": said["qs"], "before": said["ends"], "after": []})
            if kind != "acquired" and epoch in owners:
                owners[epoch]["after"] = owners[epoch]["after"] or said["ends"]
    floors: dict[str, int] = {}
    for epoch, it in sorted(owners.items()):
        if partition < len(it["after"]) and it["after"][partition] <= position:
            floors.update(dict.fromkeys(it["qs"], epoch))
    starts = [
        it["before"][partition]
        for epoch, it in owners.items()
        if partition < len(it["before"]) and any(epoch > floors.get(q, -1) for q in it["qs"])
    ]
    return floors, min([position, *starts])


def visible(
    record: dict[str, Any], floors: dict[str, int], key: tuple[str, str], state: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The reader's rule, for a request with one choice: yields the events that count."""
    for q in record["qs"] if record["record"] == "fence" else ():
        floors[q] = max(floors.get(q, -1), record["epoch"])
    for event in record.get("events", ()):
        q, epoch, origin = event["q"], event["epoch"], (event["q"], event["offset"])
        if epoch < floors.get(q, -1):
            continue  # said by a worker that had been replaced
        floors[q] = epoch
        if (event["tenant"], event["id"]) != key or state.setdefault("origin", origin) != origin:
            continue  # another request, or a second copy of this one
        count, kind = state.setdefault("count", 0), event["kind"]
        if kind == "tokens":
            ends = "finish_reason" in event
            if event["seq"] != count or state.get("ended") or not (event["token_ids"] or ends):
                continue  # stored twice
            state.update(count=count + len(event["token_ids"]), ended=ends)
        elif kind == "started":
            epochs = state.setdefault("epochs", set())
            if epoch not in epochs and sum(event["counts"]) != count:
                yield {**event, "kind": "failed", "error": {"code": "interrupted"}}
                return  # never spliced
            epochs.add(epoch)
        elif kind == "released" or sum(event["counts"]) != count:
            continue
        yield event


async def ask(options: argparse.Namespace) -> int:
    common = {"bootstrap_servers": options.bootstrap}
    reader = AIOKafkaConsumer(**common, enable_auto_commit=False, auto_offset_reset="none")
    producer = AIOKafkaProducer(**common, acks="all", enable_idempotence=True)
    async with reader, producer:
        replies = TopicPartition("replies", secrets.choice(sorted(await reply_partitions(reader))))
        position = (await reader.end_offsets([replies]))[replies]
        floors, start = await beginning(reader, replies.partition, position)
        first = (await reader.beginning_offsets([replies]))[replies]
        reader.assign([replies])
        reader.seek(replies, max(start, first))
        key = (options.tenant, make_id(replies.partition))
        await producer.send_and_wait(
            f"requests.{options.pool}.{options.tier}",
            json.dumps(request(options, key[1])).encode(),
            key=f"{options.tenant}:0".encode(),
            headers=[
                ("inferlog-request-id", key[1].encode()),
                ("inferlog-tenant", options.tenant.encode()),
            ],
        )
        state: dict[str, Any] = {}
        async for message in reader:
            for event in visible(json.loads(message.value), floors, key, state):
                if event["kind"] == "tokens":
                    print(event["text"], end="", flush=True)
                elif event["kind"] != "started":
                    print()
                    told = event.get("error") or event.get("usage") or {}
                    print(event["kind"], json.dumps(told), file=sys.stderr)
                    return 0 if event["kind"] == "finished" else 1
    return 1


async def reply_partitions(reader: AIOKafkaConsumer) -> set[int]:
    """The partitions of `replies`."""
    reader.subscribe(["replies"])  # tells the client which topic to learn about
    while not (found := reader.partitions_for_topic("replies")):
        await asyncio.sleep(0.1)
    reader.unsubscribe()
    return set(found)


def request(options: argparse.Namespace, request_id: str) -> dict[str, Any]:
    return {
        "id": request_id,
        "tenant": options.tenant,
        "tier": options.tier,
        "pool": options.pool,
        "model": options.model,
        "endpoint": "/v1/chat/completions",
        "body": {
            "messages": [{"role": "user", "content": options.text}],
            "max_tokens": options.max_tokens,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask for an answer through Kafka alone.")
    parser.add_argument("text")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--tier", default="standard")
    parser.add_argument("--pool", default="default")
    parser.add_argument("--timeout-seconds", type=float, default=600.0)
    options = parser.parse_args()
    try:
        return asyncio.run(asyncio.wait_for(ask(options), options.timeout_seconds))
    except TimeoutError:
        print("no answer in time", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
