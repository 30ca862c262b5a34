"""Whatever arrives, starts, speaks or steps aside: behind a tick no deadline has passed unnoticed."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from core.offsets import Handle
from core.runs import Output, RunEnded
from core.scheduler import Scheduler
from core.work import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    EndWork,
    EngineReported,
    Phase,
    Tick,
    Work,
)
from schemas.requests import COMPLETIONS, Body, Deadlines, Request

SECONDS = st.integers(1, 30)


class Ticking(RuleBasedStateMachine):
    """A scheduler of three slots, and what its host may do between two ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler("w1", 3, cancelled_max=9, run_seconds=20, alone_hold_seconds=4)
        self.now_s = 0
        self.count = 0

    def running(self) -> list[Work]:
        return [work for work in self.core.works() if work.phase is Phase.RUNNING]

    @rule(
        start=SECONDS, end=SECONDS, first=SECONDS, before=st.sampled_from(["", "spoken", "poison"])
    )
    def arrive(self, start: int, end: int, first: int, before: str) -> None:
        self.count += 1
        request = Request(
            id=str(self.count),
            tenant="acme",
            tier="standard",
            model="m",
            endpoint=COMPLETIONS,
            body=Body(prompt="x"),
            deadlines=Deadlines(first_token_seconds=float(first)),
        )
        work = Work(
            request=request,
            q="requests.default.standard/0",
            offset=self.count,
            epoch=1,
            reply_partition=0,
            handle=Handle(self.count),
            made_ms=0,
            append_ms=0,
            arrived_s=self.now_s,
            start_by_s=self.now_s + start,
            end_by_s=self.now_s + end,
            starts=2 if before == "poison" else 0,
            suspect=bool(before),
            spoken=bool(before),
            unread="its record" if before == "spoken" else None,
        )
        self.core.handle(Arrived(work), self.now_s)

    @precondition(lambda self: any(it.unread for it in self.running()))
    @rule(data=st.data(), first=SECONDS)
    def read_body(self, data: st.DataObject, first: int) -> None:
        unread = [it for it in self.running() if it.unread]
        work = data.draw(st.sampled_from(unread))
        assert work.started_s is not None
        work.unread, work.first_token_by_s = None, work.started_s + first

    @precondition(lambda self: self.running())
    @rule(data=st.data(), last=st.booleans())
    def speak(self, data: st.DataObject, last: bool) -> None:
        run = data.draw(st.sampled_from(self.running())).run_id
        reports = [RunEnded(run, 1, 0)] if last else [Output(run, 0, (1,), "a")]
        self.core.handle(EngineReported(reports), self.now_s)

    @rule(slots=st.integers(0, 3))
    def change_capacity(self, slots: int) -> None:
        self.core.handle(CapacityChanged(slots), self.now_s)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = str(data.draw(st.integers(1, self.count)))
        self.core.handle(CancelRequested("acme", name, False), self.now_s)

    @rule(seconds=st.integers(0, 12))
    def tick(self, seconds: int) -> None:
        self.now_s += seconds
        alive = list(self.core.works())
        overdue = [work for work in alive if work.overdue(self.now_s)]
        commands = self.core.handle(Tick(), self.now_s)
        expired = [it.work for it in commands if isinstance(it, EndWork)]
        assert expired == overdue, "those whose deadline has passed, and no others"
        assert not any(work.overdue(self.now_s) for work in self.core.works())


TestTicking = Ticking.TestCase
TestTicking.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
