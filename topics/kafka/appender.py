"""Appending: an idempotent producer behind a call that keeps order and never suspends."""

import asyncio
import contextlib
from collections import deque
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from topics.ports import Appended, AppendFailed, AppendUnknown, Headers, LogError, RecordTooLarge

APPEND_SECONDS_MAX = 15.0


class KafkaAppender:
    """An idempotent producer whose `append` keeps call order and never suspends."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._waiting: deque[tuple[asyncio.Future[Appended], tuple[Any, ...]]] = deque()
        self._outstanding: dict[asyncio.Future[Appended], float] = {}
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._watchdog = asyncio.create_task(self._watch(), name="appender-watchdog")

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> "asyncio.Future[Appended]":
        """See `topics.ports.Appender`."""
        future: asyncio.Future[Appended] = self._loop.create_future()
        future.add_done_callback(_retrieved)
        if self._closed:
            future.set_exception(AppendFailed("the appender is closed"))
            return future
        self._outstanding[future] = self._loop.time() + APPEND_SECONDS_MAX
        arguments = (topic, value, key if key is not None or value is not None else b"", partition)
        if self._waiting or not self._hand_over(future, arguments, headers):
            # metadata unknown or the batch is full: in line, so that order is kept
            self._waiting.append((future, (*arguments, headers)))
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._drain_waiting(), name="appender-pump")
        return future

    def _hand_over(
        self, future: "asyncio.Future[Appended]", arguments: tuple[Any, ...], headers: Headers
    ) -> bool:
        """Runs aiokafka's `send` up to its first suspension; True if it ended without one."""
        topic, value, key, partition = arguments
        sending = self._producer.send(topic, value, key, partition, None, headers)
        try:
            sending.send(None)
        except StopIteration as handed_over:
            self._follow(future, handed_over.value)
            return True
        except Exception as error:  # noqa: BLE001  whatever it is, the caller's future tells it
            self._settle(future, error)
            return True
        sending.close()
        return False

    async def _drain_waiting(self) -> None:
        while self._waiting:
            future, (topic, value, key, partition, headers) = self._waiting[0]
            try:
                async with asyncio.timeout(APPEND_SECONDS_MAX):
                    sent = await self._producer.send(topic, value, key, partition, None, headers)
                self._follow(future, sent)
            except Exception as error:  # noqa: BLE001  as above
                self._settle(future, error)
            self._waiting.popleft()

    def _follow(self, future: "asyncio.Future[Appended]", sent: "asyncio.Future[Any]") -> None:
        def done(ended: "asyncio.Future[Any]") -> None:
            if ended.cancelled():
                self._settle(future, AppendUnknown("the producer was stopped"))
            elif (error := ended.exception()) is not None:
                self._settle(future, error)
            else:
                it = ended.result()
                self._outstanding.pop(future, None)
                if not future.done():
                    future.set_result(Appended(it.partition, it.offset, it.timestamp))

        sent.add_done_callback(done)

    def _settle(self, future: "asyncio.Future[Appended]", error: BaseException) -> None:
        self._outstanding.pop(future, None)
        if not future.done():
            if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
                future.set_exception(RecordTooLarge(str(error)))
            elif isinstance(error, LogError):
                future.set_exception(error)
            else:
                future.set_exception(AppendUnknown(f"{type(error).__name__}: {error}"))

    async def _watch(self) -> None:
        """A sender that died silently must not leave anybody waiting."""
        while True:
            await asyncio.sleep(1.0)
            now_s = self._loop.time()
            late = [future for future, until_s in self._outstanding.items() if until_s < now_s]
            for future in late:
                self._settle(future, AppendUnknown(f"no ack within {APPEND_SECONDS_MAX} s"))

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Flushes within the limit, then lets go."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError, KafkaError, asyncio.CancelledError):
            if self._outstanding and timeout_seconds > 0:
                await asyncio.wait(set(self._outstanding), timeout=timeout_seconds)
        stopping = asyncio.create_task(self._producer.stop())
        await asyncio.wait({stopping}, timeout=max(0.2, timeout_seconds))
        if not stopping.done():
            stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        for task in (self._watchdog, self._pump):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for future in list(self._outstanding):
            self._settle(future, AppendUnknown("closed before the ack came"))


def _retrieved(future: "asyncio.Future[Appended]") -> None:
    """An append that nobody awaits must not be reported as a lost exception."""
    if not future.cancelled():
        future.exception()
