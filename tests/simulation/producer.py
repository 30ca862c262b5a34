"""Topic producers: they put records on request topics themselves, now and then twice, late, or bad."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

from producer_api.submission import Draft
from schemas.codec import encode
from schemas.envelope import request_headers
from schemas.ids import make_request_id
from tests.simulation.cluster import Cluster
from topics.catalogue import request_topic
from topics.ports import AppendFailed, Log, LogError, Partition


@dataclass(frozen=True, slots=True)
class Batch:
    """What one producer writes. `again_s`: the same record once more, so much later."""

    number: int
    at_s: float
    draft: Draft
    again_s: tuple[float, ...] = ()
    elsewhere: bool = False
    """The copies go to another partition."""
    garbage: bool = False


class Producer:
    """Publishes one batch until everything is acknowledged."""

    def __init__(
        self,
        cluster: Cluster,
        log: Log,
        chance: random.Random,
        batch: Batch,
        counts: "Counter[str]",
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._random = chance
        self._batch = batch
        self._counts = counts

    async def live(self) -> None:
        """Publishes, and publishes again."""
        batch = self._batch
        await asyncio.sleep(batch.at_s)
        topic = request_topic("default", batch.draft.tier)
        count = self._cluster.memory.size(topic)
        partition = int(self._random.random() * self._cluster.memory.size("replies"))
        request_id = make_request_id(
            self._cluster.now_ms(), partition, self._random.getrandbits(62)
        )
        index = int(self._random.random() * count)
        await self._publish(Partition(topic, index), batch.draft, request_id)
        for delay_s in batch.again_s:
            await asyncio.sleep(delay_s)
            if batch.elsewhere:
                index = (index + 1) % count
            self._counts["published again elsewhere" if batch.elsewhere else "published again"] += 1
            await self._publish(Partition(topic, index), batch.draft, request_id)

    async def _publish(self, q: Partition, draft: Draft, request_id: str) -> None:
        """Until it is acknowledged; what is in doubt is written again, as producers do."""
        value = encode(draft.request(request_id, "default"))
        if self._batch.garbage:
            self._counts["garbage"] += 1
            value = value[: len(value) // 2]
        headers = request_headers(request_id, draft.tenant, self._cluster.now_ms())
        while True:
            try:
                appender = await self._log.appender()
                await appender.append(
                    q.topic, q.index, value, key=draft.tenant.encode(), headers=headers
                )
                await appender.close()
                return
            except AppendFailed:
                self._counts["producer refused"] += 1
            except LogError:
                self._counts["producer in doubt"] += 1
            await asyncio.sleep(0.3)
