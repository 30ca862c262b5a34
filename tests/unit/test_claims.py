"""The tail of `claims` on one replica: what it may forget, and when."""

import asyncio
from collections.abc import Mapping
from typing import Any

from core.limits import Limits
from producer_api.claims import Claims
from runtime.clock import BrokerClock
from schemas.codec import encode
from schemas.operations import Claim
from topics.catalogue import CLAIMS, TopicSettings, catalogue
from topics.memory import MemoryLog, MemoryTail
from topics.ports import Partition, Record

HERE = Partition(CLAIMS, 0)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def monotonic_s(self) -> float:
        return self.ms / 1000

    def wall_ms(self) -> int:
        return self.ms


class LateLog(MemoryLog):
    """A log whose tails are given nothing while they are held back."""

    held_back = False
    reads = 0

    async def tail(self, positions: Mapping[Partition, int]) -> MemoryTail:
        tail = await super().tail(positions)
        read = tail.read

        async def late(max_wait_seconds: float = 0.5, *bounds: Any, **more: Any) -> list[Record]:
            self.reads += 1
            if self.held_back:
                await asyncio.sleep(0.001)
                return []
            return await read(min(max_wait_seconds, 0.001), *bounds, **more)

        tail.read = late  # type: ignore[method-assign]
        return tail

    async def pass_reads(self, count: int) -> None:
        """Returns after so many more reads."""
        until = self.reads + count
        async with asyncio.timeout(5):
            while self.reads < until:
                await asyncio.sleep(0.001)


def claim(request_id: str, life_seconds: float) -> bytes:
    return encode(
        Claim(
            tenant="one",
            key="k",
            fingerprint="f",
            request_id=request_id,
            q="requests.default.standard/0",
            life_seconds=life_seconds,
        )
    )


async def test_a_winner_that_ended_still_defeats_what_is_read_late() -> None:
    hands = Hands()
    log = LateLog(clock_ms=hands.wall_ms)
    await log.create(catalogue("default", TopicSettings(claim_partitions=1)))
    claims = Claims(log, BrokerClock(hands), Limits(clock_skew_seconds=1.0))
    appender = await log.appender()
    await appender.append(CLAIMS, 0, claim("first", 4.0))
    await claims.start()
    log.held_back = True
    await appender.append(CLAIMS, 0, claim("second", 60.0))
    hands.ms += 10_000
    await log.pass_reads(5)
    log.held_back = False
    await log.pass_reads(5)
    second = claims.book.live("one", "k", hands.ms)
    assert second is not None
    assert second.claim.request_id == "second"
    assert not second.won, "on every other replica it lost to the first"
    await claims.close()
    await appender.close()


async def test_claims_that_ended_are_forgotten_once_all_before_was_read() -> None:
    hands = Hands()
    log = LateLog(clock_ms=hands.wall_ms)
    await log.create(catalogue("default", TopicSettings(claim_partitions=1)))
    claims = Claims(log, BrokerClock(hands), Limits(clock_skew_seconds=1.0))
    appender = await log.appender()
    await appender.append(CLAIMS, 0, claim("first", 4.0))
    await claims.start()
    hands.ms += 4_500
    await log.pass_reads(5)
    assert len(claims.book) == 1, "by a clock that is behind its life may still run"
    hands.ms += 1_000
    await log.pass_reads(5)
    assert len(claims.book) == 0
    await claims.close()
    await appender.close()
