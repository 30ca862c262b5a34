"""What reading needs: a bounded poll of a consumer that can be cancelled, and an eye on progress."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from topics.kafka.clients import cancelled, ended, in_background
from topics.ports import Partition, Record

STUCK_SECONDS = 5.0
RETRY_SECONDS = 0.2

OpenConsumer = Callable[[], Awaitable[AIOKafkaConsumer]]
AskEnds = Callable[[Sequence[Partition]], Awaitable[Mapping[Partition, int]]]

_NOT_ALLOWED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)


class ClientBroken(Exception):
    """The client's own background work has ended: only a new client helps."""


async def poll(consumer: AIOKafkaConsumer, wait_seconds: float, count: int) -> list[Record]:
    """The next records of a consumer, [] after the wait. Cancelling it loses none.

    aiokafka's `getmany` waits without limit for a rebalance, and would count a cancelled call as
    one under way for ever; so it is only called for what is there, and the waiting is done here.
    Raises KafkaError or ClientBroken.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + wait_seconds
    subscription, fetcher = consumer._subscription, consumer._fetcher  # noqa: SLF001
    await asyncio.sleep(0)  # a reader that is never out of records must not starve the others
    while True:
        if fetcher.error_future.done():
            raise ClientBroken("the fetcher has ended")
        waiter: asyncio.Future[None]
        if subscription.reassignment_in_progress:
            with subscription.fetch_context():
                pass  # we do poll: else a long rebalance would count as idleness, and never end
            consumer._coordinator.check_errors()  # noqa: SLF001
            waiter = subscription.wait_for_assignment()
        else:
            try:
                batches = await consumer.getmany(timeout_ms=0, max_records=count)
            except BaseException:
                subscription._fetch_count = 0  # noqa: SLF001  its context manager forgets this
                raise
            if batches:
                return [_record(message) for batch in batches.values() for message in batch]
            waiter = fetcher._create_fetch_waiter()  # noqa: SLF001
        try:
            left_s = until_s - loop.time()
            if left_s <= 0:
                return []
            await asyncio.wait(
                {waiter, fetcher.error_future}, timeout=left_s, return_when="FIRST_COMPLETED"
            )
        finally:
            waiter.cancel()
            if not waiter.cancelled() and waiter.done():
                waiter.exception()  # the next turn raises what it says


def _record(message: Any) -> Record:
    # Kafka knows headers without a value; nobody behind this door does
    headers = tuple((name, value or b"") for name, value in message.headers)
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.timestamp,
        message.key,
        message.value,
        headers,
    )


def refused_position(error: OffsetOutOfRangeError) -> tuple[Partition, int]:
    """The partition and the position that an error speaks of."""
    (position,) = error.args[0].items()
    return Partition(*position[0]), int(position[1])


class Progress:
    """Notices a client that is silently stuck: records lie before it and none come.

    `check` is called after each read that gave nothing; it asks for end offsets in the background,
    at most every `STUCK_SECONDS`.
    """

    def __init__(self, ask_ends: AskEnds) -> None:
        self._ask_ends = ask_ends
        self._seen: Mapping[Partition, int] = {}
        self._seen_s = 0.0
        self._asking: asyncio.Task[Mapping[Partition, int]] | None = None

    def check(self, positions: Mapping[Partition, int], now_s: float) -> bool:
        """True if the same positions have stood before unread records for `STUCK_SECONDS`."""
        if self._asking is not None:
            if not self._asking.done():
                return False
            asked, self._asking = self._asking, None
            if asked.cancelled() or asked.exception() is not None or positions != self._seen:
                return False
            ends = asked.result()
            return any(ends.get(p, 0) > position for p, position in positions.items())
        if positions != self._seen:
            self._seen, self._seen_s = dict(positions), now_s
        elif positions and now_s - self._seen_s > STUCK_SECONDS:
            self._seen_s = now_s
            self._asking = in_background(self._ask_then_wait(list(positions)))
        return False

    async def _ask_then_wait(self, partitions: list[Partition]) -> Mapping[Partition, int]:
        ends = await self._ask_ends(partitions)
        await asyncio.sleep(1.0)  # what came this moment may still be on its way
        return ends

    async def close(self) -> None:
        """Ends a question that is open."""
        if self._asking is not None:
            await cancelled({self._asking})


async def end_opening(opening: "asyncio.Task[Any]") -> None:
    """Ends a client that is being opened, or was opened and not fetched yet."""
    await cancelled({opening})
    if opening.done() and not opening.cancelled() and opening.exception() is None:
        await ended(opening.result())
