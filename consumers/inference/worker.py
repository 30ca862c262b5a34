"""The interpreter of the scheduler's commands: one engine, one mouth, four tiers.

Everything here runs on one event loop. Decisions are `core.scheduler`'s; this class decodes what
arrives, carries commands out, and feeds results back.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from consumers.inference.accounts import Accounts
from consumers.inference.cancels import CancelTail
from consumers.inference.engine.ports import Engine
from consumers.inference.growth import ReplyGrowth
from consumers.inference.intake import Parked, Place, is_late_copy, make_work, read_request
from consumers.inference.late_copies import LateCopies
from consumers.inference.measures import Measures
from consumers.inference.ownership import Owned
from consumers.inference.parking import after, park
from consumers.inference.replies import ReplyWriter, Speech
from consumers.inference.suspects import Suspects
from consumers.inference.tier import TierConsumer
from core.limits import Limits
from core.offsets import Handle
from core.runs import Report, Run
from core.scheduler import Scheduler
from core.work import (
    AbortOnEngine,
    Arrived,
    CancelRequested,
    CapacityChanged,
    Command,
    CompleteOffset,
    Draining,
    Dropped,
    EndWork,
    EngineReported,
    Event,
    Phase,
    PublishReply,
    StartOnEngine,
    Tick,
    Work,
)
from schemas.replies import AnyTerminal, ErrorInfo
from schemas.requests import Tier
from topics.ports import Record

TICK_SECONDS = 0.1


class Worker:
    """Host of the tiers (see `consumers.inference.tier.Host`) and owner of the scheduler."""

    def __init__(
        self,
        worker_id: str,
        engine: Engine,
        writer: ReplyWriter,
        accounts: Accounts,
        late_copies: LateCopies,
        cancels: CancelTail,
        measures: Measures,
        limits: Limits,
    ) -> None:
        self.engine = engine
        self.scheduler = Scheduler(
            worker_id,
            engine.slots,
            cancelled_max=limits.cancelled_ids,
            run_seconds=limits.reply_retention_seconds / 2,
            starts_max=limits.starts_max,
            alone_hold_seconds=limits.alone_hold_seconds,
        )
        self.suspects = Suspects(self, engine, accounts, measures, limits)
        self.tiers: dict[Tier, TierConsumer] = {}
        self.tokens_out = 0
        self.growth: ReplyGrowth | None = None
        self._writer = writer
        self._accounts = accounts
        self._late_copies = late_copies
        self._cancels = cancels
        self.measures = self._measures = measures
        self._limits = limits
        self._speeches: dict[Work, Speech] = {}
        self._rooms_wanted = False
        self._loop = asyncio.get_running_loop()

    # --- what the tiers ask

    def room(self, tier: Tier) -> int:
        """How many more records of the tier may be picked up now."""
        if self._accounts.full or self._writer.broken:
            return 0
        # beside what may be poison not even a body is parsed
        alone = self.scheduler.alone
        room = 0 if alone else self._limits.waiting_requests - self.scheduler.waiting(tier)
        self._rooms_wanted = self._rooms_wanted or room <= 0
        return room

    def count(self, what: str, reason: str = "") -> None:
        """Counts something that happened to a tier."""
        self._measures.count(what, reason)

    async def cover_cancels(self, appended_ms: int) -> None:
        """Makes sure that cancels of what was appended since then are known."""
        await self._cancels.cover(appended_ms)

    def drop(self, qs: frozenset[str]) -> None:
        """Forgets all work of these request partitions."""
        for work in [work for work in self.scheduler.works() if work.q in qs]:
            self._release(work)  # else their next owner might count us as dead
        self._do(Dropped(qs))
        self._speeches = {it: speech for it, speech in self._speeches.items() if it.q not in qs}

    def pick_up(self, owned: Owned, record: Record) -> None:
        """Tracks the record and finds out what it is."""
        handle = owned.tracker.track(record.offset)
        now_s, age_s = self._loop.time(), self._accounts.age_seconds(record.time_ms)
        place = Place(str(owned.q), record.offset, owned.epoch, record.time_ms, now_s, age_s)
        suspect = record.offset < owned.suspect_end
        if suspect and (headline := self.suspects.headline(owned, record)):
            work = make_work(headline, place, handle, self._limits)
            work.unread = record
            self.suspects.judge(owned, work, record)
            return
        found = read_request(record, owned.reply_partitions, self._limits)
        if isinstance(found, Parked):
            park_it = partial(self._park, record, found, place, handle)
            if found.beyond is not None and self.growth is not None:
                self.growth.ask(owned, found.beyond, park_it)
            else:
                park_it()
            return
        work = make_work(found, place, handle, self._limits)
        if suspect:
            self.suspects.judge(owned, work, record)
        elif is_late_copy(work, self._limits):
            self._late_copies.ask(work, self._late_copy_judged)
        else:
            self.arrive(work)

    def _park(self, record: Record, found: Parked, place: Place, handle: Handle) -> None:
        self._measures.count("dead_letter", found.reason)
        park(record, found, place, handle, self._writer, self._accounts)

    def _late_copy_judged(self, work: Work, verdict: str) -> None:
        """`run`, `done` (it was said already), `expired` (the log forgot it) or `unjudged`."""
        self._measures.count("late_copy", verdict)
        if verdict == "unjudged" or not self.owns(work):
            return
        if verdict == "done":
            work.handle.complete()
        elif verdict == "expired":
            error = ErrorInfo(code="result_expired", message="The request's past is off the log.")
            self.fail(work, error)
        else:
            self.arrive(work)

    def arrive(self, work: Work) -> None:
        """Hands a work to the scheduler."""
        self._cancels.look_back(work.made_ms)
        self._do(Arrived(work))

    def owns(self, work: Work) -> bool:
        """Whether it was picked up under the epoch that still holds."""
        tier = self.tiers[work.request.tier]
        return any(str(q) == work.q and it.epoch == work.epoch for q, it in tier.owned.items())

    # --- the scheduler's world

    def on_reports(self, reports: Sequence[Report]) -> None:
        """All reports of one engine step."""
        self._do(EngineReported(reports))

    def on_cancel(self, tenant: str, request_id: str, earlier: bool) -> None:
        """A cancel from `control`; `earlier`: it was looked up."""
        self._do(CancelRequested(tenant, request_id, earlier))

    def on_capacity(self, slots: int) -> None:
        """The engine runs so many at once from now on; 0 while there is none."""
        self._do(CapacityChanged(slots))

    async def tick(self) -> None:
        """Looks at the deadlines, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._do(Tick())
            owned = {tier: len(it.owned) for tier, it in self.tiers.items()}
            self._measures.gauges(self.scheduler, self.engine, owned)

    def fail(self, work: Work, error: ErrorInfo) -> None:
        """Ends a work; nothing happens if it has ended."""
        self._carry_out(self.scheduler.fail(work, error, self._loop.time()))

    def _do(self, event: Event) -> None:
        self._carry_out(self.scheduler.handle(event, self._loop.time()))
        if self._rooms_wanted and any(self.room(tier) > 0 for tier in self.tiers):
            self._rooms_wanted = False
            for consumer in self.tiers.values():
                consumer.room_made.set()

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case PublishReply(work, event):
                    self.tokens_out += self._measures.tokens(event)
                    self._writer.say(work.reply_partition, self._speech(work), event)
                case StartOnEngine(work, run, _, awaited):
                    self._start(command, work, run, awaited)
                case EndWork(work, event, prompt_tokens, cached_tokens):
                    self._end(work, event, prompt_tokens, cached_tokens)
                case AbortOnEngine(run_id):
                    self.engine.abort(run_id)
                case CompleteOffset(handle):
                    handle.complete()

    def _speech(self, work: Work) -> Speech:
        speech = self._speeches.get(work)
        if speech is None:
            speech = self._speeches[work] = Speech(on_too_large=lambda: self._too_large(work))
        return speech

    def _too_large(self, work: Work) -> None:
        """One event alone is too large for a record, so what follows it can never be accepted.

        Its terminal would count tokens that no reader has: the epoch ends, the log is folded again,
        and the deadline ends the request if it happens again.
        """
        self._measures.count("event_too_large", "")
        self.tiers[work.request.tier].end_epochs("an event was too large for a record")

    def _start(self, command: StartOnEngine, work: Work, run: Run, awaited: bool) -> None:
        partition = work.reply_partition
        self._writer.begin(work.handle, partition)
        speech = self._speech(work)
        self._measures.started(work, alone=self.scheduler.alone)
        self._writer.say(partition, speech, command.started)
        if awaited:
            # so that each start of what may be poison is counted, even if it kills us
            speech.when_silent(lambda: self._submit_if_running(work, run))
        else:
            self.engine.submit(run)

    def _submit_if_running(self, work: Work, run: Run) -> None:
        if work.phase is Phase.RUNNING and work.run_id == run.run_id:
            with_body = self.suspects.read_body(work, run)
            if with_body is not None:
                self.engine.submit(with_body)

    def _end(self, work: Work, event: AnyTerminal, prompt_tokens: int, cached_tokens: int) -> None:
        """Complete when every event of it, and its usage, is acknowledged."""
        speech = self._speech(work)
        del self._speeches[work]
        self._measures.ended(work, event, prompt_tokens, cached_tokens)
        self._writer.begin(work.handle, work.reply_partition)
        self._writer.say(work.reply_partition, speech, event)
        if self._writer.broken:
            return

        def complete() -> None:
            work.handle.complete()
            for follower in work.followers:
                follower.complete()

        acknowledged = after(2, complete)
        speech.when_silent(acknowledged)
        self._accounts.usage(work, event, prompt_tokens, cached_tokens, acknowledged)

    # --- failures and the end

    def publish_failed(self) -> None:
        """A publish is in doubt: every epoch ends, memory is dropped, the log alone is trusted."""
        for tier in self.tiers.values():
            tier.end_epochs("a publish failed or is in doubt")

    async def drain(self, timeout_seconds: float) -> None:
        """Finishes what runs, bounded; hands over the rest with `Released`."""
        for tier in self.tiers.values():
            tier.stop_reading()
        self._do(Draining())
        deadline_s = self._loop.time() + timeout_seconds
        while self.scheduler.running and self.scheduler.slots and self._loop.time() < deadline_s:
            await asyncio.sleep(0.02)
        for work in list(self.scheduler.works()):
            self.engine.abort(work.run_id)
            self._release(work)

    def _release(self, work: Work) -> None:
        """Says of a running work that it ends here and did not die.

        Without an engine it did: whoever takes it over must count that.
        """
        if work.phase is Phase.RUNNING and self.scheduler.slots:
            self._writer.say(work.reply_partition, self._speech(work), work.released())
