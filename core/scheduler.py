"""Which request enters the engine, when it must end, and what is said of it.

`handle(event, now_s)` returns commands; it never waits, reads a clock or does IO. The engine decides
which tokens run; this core knows slots and deadlines, never the engine's memory.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from math import inf

from core.cancelled_ids import CancelledIds
from core.recovery import unfaithful
from core.runs import Output, Report, RunEnded
from core.solitude import Solitude
from core.stream import Key
from core.work import (
    AbortOnEngine,
    Arrived,
    CancelRequested,
    CapacityChanged,
    Command,
    CompleteOffset,
    Deadline,
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
from schemas.replies import AnyTerminal, Cancelled, ErrorInfo, Expired, Failed, Finished, Started
from schemas.requests import TIERS, Tier


class Scheduler:
    """Premium first, first come first served within a tier, up to the engine's slots.

    What an earlier owner had begun goes before the rest of its tier. What may be poison runs alone:
    see `core.solitude`.
    """

    def __init__(
        self,
        worker_id: str,
        slots: int,
        *,
        cancelled_max: int,
        run_seconds: float,
        starts_max: int = 3,
        alone_hold_seconds: float = 10.0,
    ) -> None:
        self.slots = slots
        self._worker_id = worker_id
        self._run_seconds = run_seconds
        self._queues: dict[Tier, deque[Work]] = {tier: deque() for tier in TIERS}
        self._runs: dict[int, Work] = {}
        self._known: dict[Key, list[Work]] = {}  # nearly always one
        self._recent: OrderedDict[tuple[str, Key], int] = OrderedDict()
        self._cancelled = CancelledIds(cancelled_max)
        self._next_run = 1
        self._due_s = inf  # until then no tick has to look at all works
        self._draining = False
        self._solitude = Solitude(starts_max, alone_hold_seconds)

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._runs)

    @property
    def alone(self) -> bool:
        """True while a request runs that may be poison: nothing else should be begun."""
        return self._solitude.alone is not None

    def waiting(self, tier: Tier | None = None) -> int:
        """Requests picked up and not started."""
        solitary = self._solitude.waiting(tier)
        if tier is not None:
            return len(self._queues[tier]) + solitary
        return sum(len(queue) for queue in self._queues.values()) + solitary

    def works(self) -> Iterable[Work]:
        """Everything picked up and not ended."""
        return (work for same in self._known.values() for work in same)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Takes the next event; the commands are to be carried out in order."""
        commands: list[Command] = []
        match event:
            case EngineReported(reports):
                for report in reports:
                    self._report(report, now_s, commands)
                self._clear(commands)
            case Arrived(work):
                self._arrive(work, now_s, commands)
            case CancelRequested(tenant, request_id, earlier):
                self._cancel((tenant, request_id), earlier, now_s, commands)
            case CapacityChanged(slots):
                self.slots = slots
            case Dropped(qs):
                self._drop(qs, commands)
            case Draining():
                self._draining = True
            case Tick():
                self._expire(now_s, commands)
        self._start_next(now_s, commands)
        return commands

    # --- arriving and starting

    def _arrive(self, work: Work, now_s: float, commands: list[Command]) -> None:
        if not work.spoken:
            # the same request again on the same q: complete with the first, never run twice
            for first in self._known.get(work.key, ()):
                if first.q == work.q:
                    first.followers.append(work.handle)
                    return
            if self._recent.get((work.q, work.key)) == work.epoch:
                commands.append(CompleteOffset(work.handle))
                return
        width = work.request.body.n
        work.counts = [len(choice.token_ids) for choice in work.resume] or [0] * width
        work.reasons = [choice.finish_reason for choice in work.resume] or [None] * width
        self._known.setdefault(work.key, []).append(work)
        self._due_s = min(self._due_s, work.due_s())
        overdue = work.overdue(now_s)
        if work.key in self._cancelled and overdue != "total":
            # of what is too old altogether its client may have been told already
            self._end_cancelled(work, commands)
        elif overdue:
            self._end_expired(work, overdue, commands)
        elif self._solitude.concerns(work):
            self._solitude.add(work)
        else:
            queue = self._queues[work.request.tier]  # in front: those whose beginning was seen
            queue.insert(sum(it.spoken for it in queue) if work.spoken else len(queue), work)

    def _start_next(self, now_s: float, commands: list[Command]) -> None:
        if self._draining or len(self._runs) >= self.slots:
            return
        solitary = self._solitude.next(len(self._runs))
        if solitary is not None:
            solitary.begin_trial()
            commands.append(self._start(solitary, now_s))
        if not self._solitude.lets_others_start(now_s):
            return
        for queue in self._queues.values():
            while queue and len(self._runs) < self.slots:
                commands.append(self._start(queue.popleft(), now_s))

    def _start(self, work: Work, now_s: float) -> StartOnEngine:
        request = work.request
        work.phase = Phase.RUNNING
        work.run_id = self._next_run
        self._next_run += 1
        work.started_s = now_s
        work.first_token_by_s = now_s + request.deadlines.first_token_seconds
        work.end_by_s = min(work.end_by_s, now_s + self._run_seconds)
        self._runs[work.run_id] = work
        self._due_s = min(self._due_s, work.due_s())
        started = Started(
            **work.event_fields(),
            starts=work.starts + 1,
            counts=tuple(work.counts),
            info=request.info(),
            worker=self._worker_id,
        )
        return StartOnEngine(work, work.run(), started, awaited=work.suspect)

    # --- what the engine says

    def _report(self, report: Report, now_s: float, commands: list[Command]) -> None:
        work = self._runs.get(report.run_id)
        if work is None:
            return  # aborted meanwhile
        if now_s >= work.end_by_s:
            # a process that slept hears the engine before any tick
            self._end_expired(work, "total", commands)
        elif isinstance(report, Output):
            if work is self._solitude.alone:
                work.try_output(report)
            commands.append(PublishReply(work, work.tokens(report, now_s)))
        else:
            self._run_ended(work, report, commands)

    def _clear(self, commands: list[Command]) -> None:
        """A request that ran alone is none to fear once it has brought a new token.

        If others wait to be tried, it makes room at once and goes on behind them: sixty-four that died
        beside one poison are then told apart in the time of their first tokens, not of their answers.
        """
        work = self._solitude.alone
        if work is None or sum(work.counts) == work.given():
            return
        self._solitude.alone = None
        work.starts = 0
        if not self._solitude.waiting() or unfaithful(work.request.body, frozenset()):
            return
        del self._runs[work.run_id]
        commands += [AbortOnEngine(work.run_id), PublishReply(work, work.released())]
        work.step_aside()
        self._queues[work.request.tier].appendleft(work)

    def _run_ended(self, work: Work, ended: RunEnded, commands: list[Command]) -> None:
        if ended.error is not None:
            self._end_failed(work, ended.error, commands)
            return
        event = work.finished(ended.prompt_tokens, ended.cached_tokens)
        self._end(work, event, commands, ended.prompt_tokens, ended.cached_tokens)

    # --- ways to end

    def _end(
        self,
        work: Work,
        event: AnyTerminal,
        commands: list[Command],
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
    ) -> None:
        if work.phase is Phase.RUNNING:
            del self._runs[work.run_id]
            if not isinstance(event, Finished):
                commands.append(AbortOnEngine(work.run_id))
        elif work in (queue := self._queues[work.request.tier]):
            queue.remove(work)  # what ended would take the room of what could still be picked up
        work.phase = Phase.ENDED
        self._solitude.forget_ended()
        self._forget(work)
        self._recent[work.q, work.key] = work.epoch
        if len(self._recent) > 10_000:
            self._recent.popitem(last=False)
        commands.append(EndWork(work, event, prompt_tokens, cached_tokens))

    def _end_failed(self, work: Work, error: ErrorInfo, commands: list[Command]) -> None:
        self._end(work, Failed(**work.terminal_fields(), error=error), commands)

    def _end_cancelled(self, work: Work, commands: list[Command]) -> None:
        self._end(work, Cancelled(**work.terminal_fields()), commands)

    def _end_expired(self, work: Work, deadline: Deadline, commands: list[Command]) -> None:
        self._end(work, Expired(**work.terminal_fields(), deadline=deadline), commands)

    def fail(self, work: Work, error: ErrorInfo, now_s: float) -> list[Command]:
        """Ends one request with an error found outside (bad body, unresumable, too large)."""
        commands: list[Command] = []
        if work.phase is not Phase.ENDED and now_s >= work.end_by_s:
            self._end_expired(work, "total", commands)  # its client may have been told already
        elif work.phase is not Phase.ENDED:
            self._end_failed(work, error, commands)
        return commands

    def _cancel(self, key: Key, earlier: bool, now_s: float, commands: list[Command]) -> None:
        for work in list(self._known.get(key, ())):
            if now_s >= work.end_by_s:
                self._end_expired(work, "total", commands)
            else:
                self._end_cancelled(work, commands)
        # Kept also when it was carried out: should another owner's fence have made `Cancelled`
        # invisible, the request is taken over again, and nobody reads its cancel a second time.
        (self._cancelled.add_earlier if earlier else self._cancelled.add)(key)

    def _forget(self, work: Work) -> None:
        same = self._known.get(work.key, [])
        if work in same:
            same.remove(work)
            if not same:
                del self._known[work.key]

    def _expire(self, now_s: float, commands: list[Command]) -> None:
        if now_s < self._due_s:
            return
        for work in list(self.works()):
            if deadline := work.overdue(now_s):
                self._end_expired(work, deadline, commands)
        self._due_s = min((work.due_s() for work in self.works()), default=inf)

    def _drop(self, qs: frozenset[str], commands: list[Command]) -> None:
        for work in list(self.works()):
            if work.q in qs:
                if work.phase is Phase.RUNNING:
                    del self._runs[work.run_id]
                    commands.append(AbortOnEngine(work.run_id))
                work.phase = Phase.ENDED
                self._forget(work)
        self._solitude.forget_ended()
        for queue in self._queues.values():
            if any(work.phase is Phase.ENDED for work in queue):
                alive = [work for work in queue if work.phase is Phase.WAITING]
                queue.clear()
                queue.extend(alive)
        for same in [same for same in self._recent if same[0] in qs]:
            del self._recent[same]
