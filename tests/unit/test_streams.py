"""A stream without a terminal: when it is over, and when that cannot be known yet."""

import asyncio
import time
from collections.abc import Callable

import pytest

from core.limits import Limits
from core.stream import Visible
from producer_api.mailbox import Mailbox
from producer_api.scan_member import Member
from producer_api.streams import ReplyStream, ShuttingDown
from schemas.replies import Accepted, Expired, Finished, TokenUsage
from schemas.requests import CHAT, RequestInfo

KEY = ("one", "019b76da-b596-7001-bbc9-0a856e4f1a40")
ACCEPTED = Accepted(
    id=KEY[1], tenant=KEY[0], info=RequestInfo(endpoint=CHAT, model="m", tier="standard")
)
FINISHED = Finished(
    id=KEY[1],
    tenant=KEY[0],
    q="q/0",
    offset=0,
    epoch=0,
    counts=(0,),
    usage=TokenUsage(prompt_tokens=1, completion_tokens=0),
    finish_reasons=("stop",),
)


class FakeSource:
    """A request that is read back: `steps` are told one a read, then nothing; waits are written down."""

    def __init__(self, *steps: list[Visible]) -> None:
        self.steps = list(steps)
        self.waits: list[float] = []
        self.gap = self.closed = False

    @property
    def at_end(self) -> bool:
        return not self.steps

    async def read(self, max_wait_seconds: float) -> list[Visible]:
        self.waits.append(max_wait_seconds)
        return self.steps.pop(0) if self.steps else []

    def abandon(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def late_for(seconds: float) -> Callable[[str, float | None], float]:
    since_s = time.monotonic() - seconds
    return lambda *_: time.monotonic() - since_s


def stream_of(
    *sources: FakeSource, late: float = 60.0, mailbox: Mailbox | None = None
) -> ReplyStream:
    left = list(sources)
    return ReplyStream(KEY, asyncio.Event(), lambda _: left.pop(0), late_for(late), mailbox)


async def told(stream: ReplyStream) -> list[Visible]:
    events: list[Visible] = []
    async with asyncio.timeout(5):
        while not stream.ended:
            events += await stream.next(30.0)
    return events


async def test_a_resumed_stream_that_expired_before_says_so_without_a_wait() -> None:
    source = FakeSource([ACCEPTED])
    stream = stream_of(source)
    assert await stream.catch_up() == [ACCEPTED]
    assert [type(it) for it in await told(stream)] == [Accepted, Expired]
    # whoever comes back for it may have less patience than a wait would take, each time
    assert source.waits == [0.5, 0.0, 0.0]


async def test_a_terminal_that_is_only_unread_is_waited_for() -> None:
    # the first reads bring nothing: the scan has not come to it, or waits for a place
    source = FakeSource([], [], [ACCEPTED], [], [FINISHED])
    assert await told(stream_of(source)) == [ACCEPTED, FINISHED]


async def test_what_was_read_before_the_time_was_over_is_asked_for_again() -> None:
    before, after = FakeSource([ACCEPTED]), FakeSource([], [FINISHED])
    stream = stream_of(before, after, late=-0.05)
    assert await stream.next(0.01) == [ACCEPTED]
    await asyncio.sleep(0.1)
    assert await told(stream) == [FINISHED]
    assert before.closed


async def test_a_mailbox_may_lag_so_the_log_is_asked_when_the_time_is_over() -> None:
    box = Mailbox(KEY, 10, 1000)
    stream = stream_of(FakeSource([], [ACCEPTED, FINISHED]), mailbox=box)
    assert await told(stream) == [ACCEPTED, FINISHED]
    assert box.overflowed


async def test_a_member_that_was_too_slow_is_no_longer_at_the_end() -> None:
    member = Member(KEY, 0, Limits())
    member.at_end, member.end = True, 7
    member.park(9, None)
    assert not member.at_end
    assert member.end is None  # a later one, taken when it goes on, decides


async def test_the_end_of_a_replica_is_told_at_once() -> None:
    """However long there was to wait, and also to who comes back for more only then."""
    shutdown, box = asyncio.Event(), Mailbox(KEY, 10, 1000)
    stream = ReplyStream(KEY, shutdown, lambda _: FakeSource(), late_for(-600.0), box)
    waiting = asyncio.create_task(stream.next(300.0))
    await asyncio.sleep(0.01)
    shutdown.set()
    box.wake()  # as the router does it
    for asked in (waiting, stream.next(300.0)):
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(asked, 1.0)
    await stream.close()


async def test_who_waits_for_his_mailbox_hears_that_the_time_is_over_when_it_is() -> None:
    box = Mailbox(KEY, 10, 1000)
    stream = stream_of(FakeSource([], [ACCEPTED, FINISHED]), late=-0.3, mailbox=box)
    began_s = time.monotonic()
    assert await asyncio.wait_for(stream.next(300.0), 2.0) == [ACCEPTED, FINISHED]
    assert time.monotonic() - began_s > 0.29
    await stream.close()
