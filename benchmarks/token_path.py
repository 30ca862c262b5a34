"""What a streamed token costs one API replica between the record and the socket, and nothing else.

    python -m benchmarks.token_path

In one process, with neither broker nor socket: records of `replies`, each with a token for each of 16 streams
(`--streams`), go through the tail's turn (decoding, the reader's rule, mailbox, result cache, rendering) to a transport that
throws them away. All is warm: beside a broker and a load client on the same cores it takes several times as
long (docs/performance.md). `--cold` comes near to that: between two steps it writes to as much other memory as
the processor's caches hold. For comparing one version of this path with another.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.results_file import speed, spread
from core.limits import DEFAULT_LIMITS
from core.stream import Reader
from producer_api.direct import Direct, Pieces
from producer_api.mailbox import Mailbox
from producer_api.rendering import ChunkRenderer
from producer_api.reply_router import ReplyRouter
from producer_api.result_cache import ResultCache
from producer_api.streams import ReplyStream
from producer_api.timings import Timings
from runtime.metrics import Metrics
from schemas.codec import encode
from schemas.ids import make_request_id
from schemas.replies import Events, Tokens
from schemas.requests import CHAT, RequestInfo

STREAMS = 16
STEPS = 400
REPEATS = 7
OTHER_BYTES = 32 * 1024 * 1024
INFO = RequestInfo(endpoint=CHAT, model="scripted", tier="standard")


class Nowhere:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.bytes = 0

    def is_closing(self) -> bool:
        """Never."""
        return False

    def write(self, data: bytes) -> None:
        """Counts."""
        self.bytes += len(data)


def step(ids: Sequence[str], number: int) -> bytes:
    """The record of one step of the engine."""
    common: dict[str, Any] = {"tenant": "a", "q": "requests.default.standard/0", "epoch": 3}
    events = [
        Tokens(**common, id=it, offset=7, seq=number, token_ids=(number,), text=f"abcdef.{number} ")
        for it in ids
    ]
    return encode(Events(events=tuple(events)))


async def measure(streams: int, *, cold: bool) -> float:
    """Nanoseconds per token, of one round."""
    other = bytearray(OTHER_BYTES if cold else 0)
    ids = [make_request_id(1_700_000_000_000, 0, number) for number in range(streams)]
    metrics, nowhere = Metrics(), Nowhere()
    where: Any = nowhere
    unused: Any = None
    router = ReplyRouter(unused, unused, metrics, [0])
    router._readers[0] = Reader({}, router._boxes.get)  # noqa: SLF001  no log is opened
    cache, timings = ResultCache(DEFAULT_LIMITS, metrics), Timings(metrics)
    waiting = []
    for request_id in ids:
        box = Mailbox(("a", request_id), 1024, 1 << 18)
        router.watch(box)
        recording = cache.record(box.key)
        stream = ReplyStream(
            box.key, asyncio.Event(), unused, lambda *_: -60.0, box, recording=recording
        )
        stream.timing = timings.accepted("standard", 0.0)
        stream.hand_over_to(Direct(ChunkRenderer(request_id, INFO), Pieces(where)))
        waiting.append((stream, asyncio.create_task(stream.next(60.0))))
    records = [step(ids, number) for number in range(STEPS)]
    took_s = 0.0
    for number, record in enumerate(records):
        if cold:
            other[:] = bytes(OTHER_BYTES)
        began_s = time.perf_counter()
        touched: dict[Mailbox, None] = {}
        router._feed(0, number, record, touched)  # noqa: SLF001  the turn of the tail
        for box in touched:
            box.wake()
        took_s += time.perf_counter() - began_s if number > 1 else 0.0
        if number <= 1:  # the first tokens are the task's
            await asyncio.sleep(0)
            waiting = [
                (it, asyncio.create_task(it.next(60.0)) if task.done() else task)
                for it, task in waiting
            ]
            await asyncio.sleep(0)
    assert all(stream.position == STEPS for stream, _ in waiting), "a token was lost"
    assert nowhere.bytes > (STEPS - 2) * streams * 200, "a token was not written past its task"
    for stream, task in waiting:
        task.cancel()
        await stream.close()
    return took_s / ((STEPS - 2) * streams) * 1e9


def main() -> None:
    """Measures and prints; nothing is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--streams", type=int, default=STREAMS, help="that get a token each step")
    parser.add_argument("--cold", action="store_true", help="nothing is in the caches at a step")
    words = parser.parse_args()
    rounds = [
        uvloop.run(measure(words.streams, cold=words.cold)) for _ in range(words.repeats + 1)
    ][1:]
    print(f"{spread(rounds)} ns per token; this machine: {speed()}")


if __name__ == "__main__":
    main()
