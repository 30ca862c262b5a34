"""Faults put into the product while a run lasts: the checker must see each of them.

Where the protocol's random-interleaving model has the same mutation, its name is told in brackets. Two of
the model's no schedule can show here, since no worker of ours speaks on after a lost record (nocount) or
starts two copies out of order (attachspoken): `tests/unit/test_stream_reader.py` and `test_scheduler.py`
hold those rules, `tests/checker` shows that the judge would see them broken.
The last group takes back what the simulation had found and what was mended since.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from consumers.inference.cancels import CancelTail
from consumers.inference.commits import Commits
from consumers.inference.ledger_writer import LedgerWriter
from consumers.inference.ownership import Ownership
from consumers.inference.replies import ReplyWriter
from consumers.inference.tier import TierConsumer
from consumers.inference.worker import Worker
from core.epochs import FenceLog
from core.idempotency import ClaimBook
from core.offsets import OffsetTracker
from core.recovery import Fold, Resume
from core.runs import Logged
from core.scheduler import Scheduler
from core.solitude import Solitude
from core.stream import Reader
from producer_api.claims import Claims
from producer_api.publisher import Publisher
from producer_api.rendering import ChunkRenderer
from producer_api.streams import ReplyStream
from runtime.clock import BrokerClock

Mutation = Callable[[contextlib.ExitStack], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(make: Mutation) -> Mutation:
    """Registers it under its name."""
    MUTATIONS[make.__name__] = make
    return make


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """The product with one fault."""
    with contextlib.ExitStack() as stack:
        MUTATIONS[name](stack)
        yield


def _put(stack: contextlib.ExitStack, owner: type, name: str, new: Any) -> Any:
    """Replaces an attribute that is there; returns the old one."""
    old = owner.__dict__[name]
    stack.enter_context(patch.object(owner, name, new))
    return old


async def _nothing(*_: Any, **__: Any) -> None:
    """Done."""


# --- fences and epochs


@mutation
def skip_the_fence(stack: contextlib.ExitStack) -> None:
    """(nofence) A new owner writes no fence."""
    _put(stack, ReplyWriter, "fence", _nothing)


@mutation
def fence_one_partition(stack: contextlib.ExitStack) -> None:
    """Only the first reply partition is fenced."""

    async def fence(self: ReplyWriter, partitions: int, epoch: int, qs: tuple[str, ...]) -> None:
        await old(self, min(1, partitions), epoch, qs)

    old = _put(stack, ReplyWriter, "fence", fence)


@mutation
def ignore_the_epoch(stack: contextlib.ExitStack) -> None:
    """(noepoch) Readers accept whatever fits, whoever says it."""

    def feed(self: Reader, events: Any) -> Any:
        self.floors.clear()
        return old(self, events)

    old = _put(stack, Reader, "_feed_events", feed)


@mutation
def trust_the_generation(stack: contextlib.ExitStack) -> None:
    """An epoch that a second owner of the same partitions may have again, as generations are."""

    async def announce(self: Ownership, names: tuple[str, ...], ends: tuple[int, ...]) -> int:
        await self._fence_tail.caught_up()
        known = {self._fence_tail.fences.highest(name) for name in names}
        if len(known) == 1 and -1 not in known:
            return known.pop()
        epoch: int = await old(self, names, ends)
        return epoch

    old = _put(stack, Ownership, "_announce", announce)


@mutation
def keep_unasked(stack: contextlib.ExitStack) -> None:
    """(noincarnation, in part) What was owned before a rebalance is owned after it."""

    async def keep(self: TierConsumer) -> None:
        for q in self._wanted & set(self.owned):
            self._wanted.discard(q)
            self._begin_reading(q)

    _put(stack, TierConsumer, "_keep", keep)
    _put(stack, TierConsumer, "_watch_fences", _for_ever)
    _put(stack, Commits, "__init__", _blind(Commits.__init__))


async def _for_ever(*_: Any) -> None:
    await asyncio.Event().wait()


@mutation
def nobody_is_late(stack: contextlib.ExitStack) -> None:
    """(nolate) A reader that starts late begins where it wants, and knows no epochs."""
    _put(stack, FenceLog, "late_start", lambda _, __, position: ({}, position))


@mutation
def half_fenced_is_not_fenced(stack: contextlib.ExitStack) -> None:
    """(noB) An A without its B is passed over by late readers."""

    def late_start(self: FenceLog, partition: int, position: int) -> Any:
        everyone = self._by_epoch
        self._by_epoch = {e: it for e, it in everyone.items() if it.ends_after is not None}
        try:
            return old(self, partition, position)
        finally:
            self._by_epoch = everyone

    old = _put(stack, FenceLog, "late_start", late_start)


# --- readers


@mutation
def accept_other_origins(stack: contextlib.ExitStack) -> None:
    """(nobind) A second published copy may speak as well."""

    def accept(self: Reader, state: Any, event: Any) -> Any:
        if state.terminal is None:
            state.origin = (event.q, event.offset)
        return old(self, state, event)

    old = _put(stack, Reader, "_accept", accept)


@mutation
def repeat_after_overflow(stack: contextlib.ExitStack) -> None:
    """A reader that lost its mailbox is told everything again."""

    def open_source(self: ReplyStream) -> Any:
        self._source = self._follow(0)
        return self._source

    _put(stack, ReplyStream, "_open_source", open_source)


@mutation
def skip_one_on_resume(stack: contextlib.ExitStack) -> None:
    """A client that comes back misses the token after its position."""

    def init(self: ChunkRenderer, request_id: str, info: Any, after: int = 0) -> None:
        old(self, request_id, info, after + 1 if after else 0)

    old = _put(stack, ChunkRenderer, "__init__", init)


@mutation
def expire_what_is_unread(stack: contextlib.ExitStack) -> None:
    """A request past its time is called expired, whatever of the log was read by then."""

    def is_over(self: ReplyStream, _: float) -> bool:
        return not self._ahead and self._late_by(self.request_id, self._total_seconds) > 0

    _put(stack, ReplyStream, "_is_over", is_over)


@mutation
def wait_though_over(stack: contextlib.ExitStack) -> None:
    """A client with little patience never hears that its request has expired."""

    async def fetch(self: ReplyStream, wait_seconds: float, now_s: float) -> Any:
        return await old(self, wait_seconds or 30.0, now_s)

    old = _put(stack, ReplyStream, "_fetch", fetch)


# --- taking over


@mutation
def fold_nothing(stack: contextlib.ExitStack) -> None:
    """(noscan) Every suspect runs from its beginning."""
    _put(stack, Ownership, "_fold", _nothing)


@mutation
def resume_off_by_one(stack: contextlib.ExitStack) -> None:
    """A resumed run forgets the last token of its first choice."""

    def verdict(self: Fold, *args: Any) -> Any:
        found = old(self, *args)
        if isinstance(found, Resume) and found.logged[0].token_ids:
            first = found.logged[0]
            shorter = Logged(first.token_ids[:-1], first.text, first.finish_reason)
            return replace(found, logged=(shorter, *found.logged[1:]))
        return found

    old = _put(stack, Fold, "verdict", verdict)


@mutation
def forget_cancels_on_takeover(stack: contextlib.ExitStack) -> None:
    """A new owner does not ask what was cancelled before it came."""
    _put(stack, CancelTail, "_cover", _nothing)


@mutation
def speak_while_fencing(stack: contextlib.ExitStack) -> None:
    """(pubduring) The work of an epoch that ended goes on."""

    def forget(self: TierConsumer, qs: Any) -> None:
        for q in qs:
            del self.owned[q]
        if self.member is not None:
            self.member.pause(q for q in qs if q in self.assigned)

    _put(stack, TierConsumer, "_forget", forget)


@mutation
def drop_work_keep_offsets(stack: contextlib.ExitStack) -> None:
    """(dropmem) The work is dropped, and the position believed."""

    def forget(self: TierConsumer, qs: Any) -> None:
        self._host.drop(frozenset(map(str, qs)))
        if self.member is not None:
            self.member.pause(q for q in qs if q in self.assigned)

    _put(stack, TierConsumer, "_forget", forget)


# --- publishing and committing


@mutation
def keep_after_doubt(stack: contextlib.ExitStack) -> None:
    """(noabandon, keepdoubt) A publish in doubt is taken for done; the epoch goes on."""

    def done(self: ReplyWriter, partition: int, said: Any, future: Any) -> None:
        if future.cancelled() or future.exception() is None:
            old(self, partition, said, future)
            return
        self._under_way.discard(future)
        if self._appender is not None:
            self._appender = None
            self._reopening = asyncio.ensure_future(self.reopen())  # type: ignore[attr-defined]
        for speech, _ in said:
            speech.acknowledged()

    old = _put(stack, ReplyWriter, "_done", done)


@mutation
def commit_early(stack: contextlib.ExitStack) -> None:
    """(earlycommit) What was started counts as done."""
    _put(stack, OffsetTracker, "low", lambda self: self.next)


@mutation
def commit_before_the_acks(stack: contextlib.ExitStack) -> None:
    """What was said counts as heard."""

    def end(self: Worker, work: Any, *args: Any) -> None:
        work.handle.complete()
        old(self, work, *args)

    old = _put(stack, Worker, "_end", end)


def _blind(old: Any) -> Any:
    """Commits that see no fences."""

    class Tails:
        """A tail of `fences` that agrees with whatever the tier believes."""

        def __init__(self, tier: Any) -> None:
            self.fences = self
            self._tier = tier

        async def caught_up(self) -> None:
            """At once."""

        def highest(self, q: str) -> int:
            """The epoch that is believed."""
            return next((it.epoch for p, it in self._tier.owned.items() if str(p) == q), -1)

    class Blind:
        """A tier with such a tail."""

        def __init__(self, tier: Any) -> None:
            object.__setattr__(self, "tier", tier)
            object.__setattr__(self, "fence_tail", Tails(tier))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tier, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.tier, name, value)

    def init(self: Commits, tier: Any, *args: Any) -> None:
        old(self, Blind(tier), *args)

    return init


@mutation
def no_commit_check(stack: contextlib.ExitStack) -> None:
    """(nocheck) Commits go out without a look at `fences`."""
    _put(stack, Commits, "__init__", _blind(Commits.__init__))


@mutation
def span_from_the_lowest(stack: contextlib.ExitStack) -> None:
    """(caplow) The span is counted from what is done, not from what is committed."""

    def has_span(self: TierConsumer, q: Any) -> bool:
        tracker = self.owned[q].tracker
        return tracker.next < tracker.low() + self._span_offsets

    _put(stack, TierConsumer, "has_span", has_span)


@mutation
def marks_forget_the_found(stack: contextlib.ExitStack) -> None:
    """(metarunning) A commit's positions cover only what this worker started."""

    def commit_point(self: OffsetTracker, reached: Any, _found: Any) -> Any:
        return old(self, reached, {})

    old = _put(stack, OffsetTracker, "commit_point", commit_point)


# --- claims


@mutation
def every_claim_wins(stack: contextlib.ExitStack) -> None:
    """The order of claims is ignored."""

    def feed(self: ClaimBook, append_ms: int, claim: Any) -> Any:
        judged = replace(old(self, append_ms, claim), won=True)
        self._by_key[claim.tenant, claim.key][-1] = judged
        return judged

    old = _put(stack, ClaimBook, "feed", feed)


@mutation
def lost_claims_revive(stack: contextlib.ExitStack) -> None:
    """When the winner's life has ended, a claim that had lost to it is taken for the winner."""

    def live(self: ClaimBook, tenant: str, key: str, now_ms: float) -> Any:
        found = old(self, tenant, key, now_ms)
        return None if found is None else replace(found, won=True)

    old = _put(stack, ClaimBook, "live", live)


# --- poison


@mutation
def poison_parks_its_neighbours(stack: contextlib.ExitStack) -> None:
    """Nobody runs alone before it is parked: whoever was beside a poison three times goes with it."""
    _put(stack, Solitude, "concerns", lambda _, __: False)


# --- what the simulation had found


@mutation
def commits_race(stack: contextlib.ExitStack) -> None:
    """Two commits of one tier may be under way at once."""

    def init(self: Commits, *args: Any) -> None:
        old(self, *args)
        self._turn = _NoTurn()  # type: ignore[assignment]

    old = _put(stack, Commits, "__init__", init)


class _NoTurn:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


@mutation
def unchanged_goes_back(stack: contextlib.ExitStack) -> None:
    """A commit that changes nothing repeats what the group tells, whatever it was sent since."""
    _put(stack, Commits, "_doubts", lambda _: {})


@mutation
def marks_forget_ends(stack: contextlib.ExitStack) -> None:
    """A commit's positions do not cover ends without a start."""

    def end(self: Worker, work: Any, *args: Any) -> None:
        before = work.handle.spoken_at
        old(self, work, *args)
        work.handle.spoken_at = before

    old = _put(stack, Worker, "_end", end)


@mutation
def marks_forget_what_has_begun(stack: contextlib.ExitStack) -> None:
    """The end of the log is taken for the mark of what had begun before it was asked for, too."""

    def commit_point(self: OffsetTracker, reached: Any, found: Any) -> Any:
        for handle in self._open:
            if handle.spoken_at is not None:
                partition, _ = handle.spoken_at
                handle.spoken_at = partition, reached[partition]
        return old(self, reached, found)

    old = _put(stack, OffsetTracker, "commit_point", commit_point)


@mutation
def two_wall_clocks(stack: contextlib.ExitStack) -> None:
    """A worker takes its own wall clock for the broker's."""

    def init(self: LedgerWriter, log: Any, _clock: Any = None) -> None:
        old(self, log)

    old = _put(stack, LedgerWriter, "__init__", init)


@mutation
def resume_without_position(stack: contextlib.ExitStack) -> None:
    """What is owned is resumed, placed or not."""

    def may_read(self: TierConsumer, q: Any) -> bool:
        return q in self.assigned and self.has_span(q)

    _put(stack, TierConsumer, "may_read", may_read)


@mutation
def accepted_side_by_side(stack: contextlib.ExitStack) -> None:
    """Under a key as without one: `Accepted` may land, and the request not."""

    async def publish(self: Publisher, *args: Any, keyed: bool) -> None:
        del keyed
        await old(self, *args, keyed=False)

    old = _put(stack, Publisher, "publish", publish)


@mutation
def speak_while_broken(stack: contextlib.ExitStack) -> None:
    """A takeover does not notice that the writer broke meanwhile."""

    def fail(self: ReplyWriter, error: Any) -> None:
        old(self, error)
        self.failures_count = 0

    old = _put(stack, ReplyWriter, "_fail", fail)


@mutation
def cancel_once(stack: contextlib.ExitStack) -> None:
    """A cancel that was carried out is forgotten, and with it what a late fence made invisible."""

    def cancel(self: Scheduler, key: Any, *args: Any) -> None:
        met = key in self._known
        old(self, key, *args)
        if met:
            self._cancelled._keys.pop(key, None)

    old = _put(stack, Scheduler, "_cancel", cancel)


@mutation
def forget_claims_by_own_clock(stack: contextlib.ExitStack) -> None:
    """A replica whose clock is ahead forgets a claim that the broker's time lets live."""

    async def prune(self: Claims) -> None:
        self.book.prune(self._clock.now_ms() + 2000)

    _put(stack, Claims, "_prune", prune)


@mutation
def forget_claims_unread(stack: contextlib.ExitStack) -> None:
    """A claim is forgotten by the clock, though what lost to it may lie on the log unread."""

    async def prune(self: Claims) -> None:
        self.book.prune(self._clock.now_ms() - self._limits.clock_skew_seconds * 1000)

    _put(stack, Claims, "_prune", prune)


@mutation
def believe_any_ack(stack: contextlib.ExitStack) -> None:
    """An ack that took longer than clocks may differ is believed all the same."""

    def init(self: BrokerClock, *_: Any, **__: Any) -> None:
        old(self)

    old = _put(stack, BrokerClock, "__init__", init)


@mutation
def hear_after_all_deadlines(stack: contextlib.ExitStack) -> None:
    """What ends after its total deadline ends so, though its client may have been told `expired`."""

    def fail(self: Scheduler, work: Any, error: Any, _: float) -> Any:
        return old_fail(self, work, error, float("-inf"))

    def report(self: Scheduler, said: Any, now_s: float, commands: Any) -> None:
        work = self._runs.get(said.run_id)
        if work is not None:
            work.end_by_s = max(work.end_by_s, now_s + 0.001)
        old_report(self, said, now_s, commands)

    old_fail = _put(stack, Scheduler, "fail", fail)
    old_report = _put(stack, Scheduler, "_report", report)


@mutation
def look_back_by_append_time(stack: contextlib.ExitStack) -> None:
    """Cancels are looked up from a record's own time on, though it may lie behind its cancel."""

    def arrive(self: Worker, work: Any) -> None:
        work.made_ms = work.append_ms
        old(self, work)

    old = _put(stack, Worker, "arrive", arrive)
