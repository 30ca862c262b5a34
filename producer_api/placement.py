"""Where a request goes: its id with its reply partition, its request partition and record key."""

import secrets
import zlib
from collections.abc import Sequence

from core.errors import Refusal
from producer_api.publisher import unavailable
from producer_api.submission import Draft
from producer_api.worker_directory import WorkerDirectory
from runtime.clock import BrokerClock
from runtime.in_time import in_time
from schemas.ids import RANDOM_BITS, make_request_id, parse_request_id
from schemas.requests import Body
from topics.catalogue import request_topic
from topics.ports import Log, LogError, Partition

PREFIX_CHARS = 256
PREFIX_BUCKETS = 4
JUST_NOW_MS = 1000


def pool_of(topic: str) -> str:
    """The pool of a request topic, `requests.<pool>.<tier>`."""
    return topic.removeprefix("requests.").rpartition(".")[0]


class Placement:
    """Ids go round the home partitions; the same beginning goes to the same worker's cache."""

    def __init__(
        self,
        log: Log,
        clock: BrokerClock,
        directory: WorkerDirectory,
        home: Sequence[int],
        reply_partitions: int,
    ) -> None:
        self._log = log
        self._clock = clock
        self._directory = directory
        self._home = tuple(home)
        self._next_home = 0
        self.reply_partitions = reply_partitions

    def grow(self, home: Sequence[int], reply_partitions: int) -> None:
        """New ids go round these from now on."""
        self._home = tuple(home)
        self.reply_partitions = reply_partitions

    def new_id(self) -> str:
        """An id of now, in broker time."""
        self._next_home = (self._next_home + 1) % len(self._home)
        random_62 = secrets.randbits(RANDOM_BITS)
        return make_request_id(int(self._clock.now_ms()), self._home[self._next_home], random_62)

    async def place(self, draft: Draft, until_s: float) -> tuple[Partition, bytes]:
        """The request partition and the record key. Raises Refusal, by `until_s` (the loop's time)."""
        key = f"{draft.tenant}:{prefix_bucket(draft.body)}".encode()
        topic = request_topic(self._directory.check(draft.model).pool, draft.tier)
        try:
            await in_time(until_s, self._log.partition_count(topic))
        except (LogError, TimeoutError) as error:
            raise unavailable() from error
        return Partition(topic, self._log.partition_of_key(topic, key)), key

    def just_made(self, id_ms: int) -> bool:
        """True for an id made just now: nothing can have been said of it before we watch."""
        return abs(self._clock.now_ms() - id_ms) < JUST_NOW_MS

    def check_id(self, request_id: str, kept_seconds: float) -> None:
        """Raises Refusal `not_found` for what is no id of ours, `result_expired` for an old one."""
        try:
            parts = parse_request_id(request_id)
        except ValueError:
            raise Refusal("not_found", "There is no such request.") from None
        if parts.reply_partition >= self.reply_partitions:
            raise Refusal("not_found", "There is no such request.")
        if parts.time_ms < self._clock.now_ms() - kept_seconds * 1000:
            raise Refusal("result_expired", "This answer is no longer kept.")


def prefix_bucket(body: Body) -> int:
    """Which of a tenant's few keys a request goes by.

    It is told by the beginning of the prompt, or of each message up to the first of the user: so a
    conversation stays with one worker's cache as it grows.
    """
    if body.messages is None:
        beginning = (body.prompt or "")[:PREFIX_CHARS]
        return zlib.crc32(beginning.encode(errors="replace")) % PREFIX_BUCKETS
    checksum = 0
    for message in body.messages:
        checksum = zlib.crc32(message.content[:PREFIX_CHARS].encode(errors="replace"), checksum)
        if message.role == "user":
            break
    return checksum % PREFIX_BUCKETS
