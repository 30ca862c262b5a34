"""A tail of a Kafka cluster: one fetch under way at each leader, and a client that is made anew if broken."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    NoError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    for_code,
)

from runtime.waiting import Waiting
from topics.kafka.clients import RECORD_BYTES_MAX, OnRebuild, describe, ended, in_background
from topics.kafka.fetch_protocol import Fetched, FetchedRecords, FetchRequest
from topics.kafka.reading import RETRY_SECONDS, AskEnds, Progress, end_opening
from topics.kafka.tail_client import OpenClient, TailClient
from topics.ports import LogError, OffsetOutOfRange, Partition, Record
from topics.read_size import READ_BYTES_MAX

FETCH_WAIT_MS = 1000
"""How long the broker holds a fetch that finds nothing. A tail's partitions change only when a topic grows
or was lost. Each empty fetch costs the broker and the reader CPU, and a stack at rest has eleven tails."""
NO_LEADER = -1

_log = logging.getLogger(__name__)


class KafkaTail:
    """See `topics.ports.Tail`. `rebuilds` counts clients that were given up."""

    def __init__(
        self,
        client: TailClient,
        open_client: OpenClient,
        ask_ends: AskEnds,
        positions: Mapping[Partition, int],
        on_rebuild: OnRebuild,
    ) -> None:
        self.rebuilds = 0
        self._closed = False
        self._client: TailClient | None = client
        self._open_client = open_client
        self._opening: asyncio.Task[TailClient] | None = None
        self._progress = Progress(ask_ends)
        self._on_rebuild = on_rebuild
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting()
        self._fetches: dict[int, Mapping[Partition, int]] = {}
        self._retry_at_s: dict[int, float] = {}
        self._fetched: deque[FetchedRecords] = deque()
        self._failure: Exception | None = None
        self._positions: dict[Partition, int] = {}
        self.assign(positions)

    def assign(self, positions: Mapping[Partition, int]) -> None:
        # what is under way for other positions is dropped when it comes
        self._positions = dict(positions)
        self._fetched.clear()
        self._failure = None
        if self._client is not None:
            self._client.client.set_topics(self._topics())

    def position(self, partition: Partition) -> int:
        return self._positions[partition]

    async def read(
        self,
        max_wait_seconds: float = 0.5,
        max_records: int = 1000,
        max_bytes: int = READ_BYTES_MAX,
    ) -> list[Record]:
        until_s = self._loop.time() + max_wait_seconds
        client = await self._ready_client(max_wait_seconds)
        if client is None:
            return []
        if self._fetched or max_wait_seconds <= 0:
            await asyncio.sleep(0)  # a reader that never waits must not starve the others
        try:
            records = await self._next(client, until_s, max_records, max_bytes)
        except (OffsetOutOfRange, LogError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it was, a new client may do better
            self._rebuild("died", describe(error))
            await asyncio.sleep(max(0.0, min(RETRY_SECONDS, until_s - self._loop.time())))
            return []
        if not records and self._progress.check(self._positions, self._loop.time()):
            self._rebuild("stuck", "records are there and do not come")
        return records

    async def _next(
        self, client: TailClient, until_s: float, most: int, room_bytes: int
    ) -> list[Record]:
        while True:
            if self._closed:
                return []
            records = self._take(most, room_bytes)
            retry_s = self._fetch_more(client)
            if records:
                return records
            self._check(client)
            left_s = until_s - self._loop.time()
            if left_s <= 0:
                return []
            await self._waiting.wait(min(left_s, retry_s))

    def _take(self, most: int, room_bytes: int) -> list[Record]:
        """Up to so many of what was fetched. Raises KafkaError if the next are damaged."""
        records: list[Record] = []
        while self._fetched and len(records) < most and room_bytes > 0:
            part = self._fetched[0]
            try:
                room_bytes = part.take(records, most - len(records), room_bytes)
            except Exception:
                if not records:  # else the same is met again at the next fetch
                    raise
                break
            finally:
                # at the end of all: who was served asks last, so that none is starved by the others
                del self._positions[part.partition]
                self._positions[part.partition] = part.next_offset
                if not part.more:
                    self._fetched.popleft()
        return records

    def _check(self, client: TailClient) -> None:
        """Raises what fetches and metadata have met."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if client.client._sync_task is None or client.client._sync_task.done():  # noqa: SLF001
            raise KafkaError("nobody learns where partitions lie any more")

    # --- fetching

    def _fetch_more(self, client: TailClient) -> float:
        """Asks each leader that nothing is asked of, unless much is here; seconds to the next try."""
        retry_s = float("inf")
        if self._fetched:
            return retry_s
        cluster, now_s = client.client.cluster, 0.0
        wanted: defaultdict[int, dict[Partition, int]] = defaultdict(dict)
        for partition, offset in self._positions.items():
            leader = cluster.leader_for_partition(TopicPartition(*partition))
            node = NO_LEADER if leader is None else leader
            if node not in self._fetches:
                wanted[node][partition] = offset
        for node, offsets in wanted.items():
            if (at_s := self._retry_at_s.get(node, 0.0)) > 0:
                now_s = now_s or self._loop.time()
                if at_s > now_s:
                    retry_s = min(retry_s, at_s - now_s)
                    continue
            if node == NO_LEADER:
                for topic in cluster.unauthorized_topics & {it.topic for it in offsets}:
                    self._failure = LogError(f"reading: not allowed: {topic}")
                client.client.force_metadata_update()
                self._retry_at_s[node] = self._loop.time() + RETRY_SECONDS
                retry_s = min(retry_s, RETRY_SECONDS)
            else:
                self._fetches[node] = offsets
                request = FetchRequest(
                    offsets, wait_ms=FETCH_WAIT_MS, partition_bytes=RECORD_BYTES_MAX
                )
                client.fetch(node, request, partial(self._answered, client, node, offsets))
        return retry_s

    def _answered(
        self,
        client: TailClient,
        node: int,
        offsets: Mapping[Partition, int],
        answer: list[Fetched] | Exception,
    ) -> None:
        if self._fetches.get(node) is not offsets:
            return  # of a client that was given up since
        del self._fetches[node]
        if isinstance(answer, KafkaError):
            self._retry_later(node, describe(answer))
        elif isinstance(answer, Exception):
            self._failure = answer  # told to whoever reads
        else:
            refused = [it for part in answer if (it := self._accept(part, offsets)) is not None]
            if refused:
                client.client.force_metadata_update()
                self._retry_later(node, refused[0])
            else:
                self._retry_at_s.pop(node, None)
        self._waiting.wake()

    def _accept(self, part: Fetched, offsets: Mapping[Partition, int]) -> str | None:
        """Takes what came of a partition; says why if it must be asked for again, perhaps elsewhere."""
        partition, code, data = part
        offset = offsets.get(partition)
        if offset is None or offset != self._positions.get(partition):
            return None  # of an assignment that was replaced since
        if any(it.partition == partition for it in self._fetched):
            return None  # its leader changed, and both have answered
        error = for_code(code)
        if error is NoError:
            if data:
                self._fetched.append(FetchedRecords(partition, data, offset))
        elif error is OffsetOutOfRangeError:
            self._failure = OffsetOutOfRange(f"{partition}: {offset} is not on the log")
        elif error is TopicAuthorizationFailedError:
            self._failure = LogError(f"reading: not allowed: {partition.topic}")
        else:
            return f"{partition}: {error.__name__}"
        return None

    def _retry_later(self, node: int, reason: str) -> None:
        if node not in self._retry_at_s:  # the first in a row
            _log.warning("broker %s cannot be read from, tried again: %s", node, reason)
        self._retry_at_s[node] = self._loop.time() + RETRY_SECONDS

    def _drop_fetches(self) -> None:
        self._fetches.clear()  # what still comes of them is nobody's
        self._retry_at_s.clear()
        self._fetched.clear()
        self._failure = None

    # --- the client

    def _rebuild(self, reason: str, detail: str) -> None:
        _log.warning("a reader is given up and made anew: %s", detail)
        self.rebuilds += 1
        self._on_rebuild("tail", reason)
        client, self._client = self._client, None
        self._drop_fetches()
        if client is not None:
            in_background(ended(client))

    async def _ready_client(self, max_wait_seconds: float) -> TailClient | None:
        """The client, None if a new one could not be had within the wait."""
        if self._client is not None:
            return self._client
        if self._closed:
            return None
        if self._opening is None:
            self._opening = in_background(self._open_client(self._topics()))
        opening = self._opening
        await asyncio.wait({opening}, timeout=max_wait_seconds)
        if not opening.done() or self._opening is not opening:
            return None
        self._opening = None
        if isinstance(opening.exception(), LogError):
            await asyncio.sleep(min(RETRY_SECONDS, max_wait_seconds))
            return None
        self._client = opening.result()
        self._client.client.set_topics(self._topics())  # of what was assigned meanwhile, too
        return self._client

    def _topics(self) -> set[str]:
        return {it.topic for it in self._positions}

    async def close(self) -> None:
        self._closed = True
        self._waiting.close()
        self._waiting.wake()
        await self._progress.close()
        if self._opening is not None:
            opening, self._opening = self._opening, None
            await end_opening(opening)
        client, self._client = self._client, None
        self._drop_fetches()
        if client is not None:
            await ended(client)
