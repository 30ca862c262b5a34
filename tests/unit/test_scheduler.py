"""Events and the time in, commands out."""

from typing import Any
from unittest.mock import Mock

import pytest

from core.offsets import Handle
from core.runs import Output, Report, RunEnded
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
    Phase,
    PublishReply,
    StartOnEngine,
    Tick,
    Work,
)
from schemas.replies import Cancelled, ErrorInfo, Expired, Failed, Finished, Tokens
from schemas.requests import COMPLETIONS, Body, Deadlines, Request, Tier

Q = "requests.default.standard/0"


def scheduler(slots: int = 1, cancelled_max: int = 10) -> Scheduler:
    return Scheduler("w1", slots, cancelled_max=cancelled_max, run_seconds=1000)


def work(name: str, *, tier: Tier = "standard", q: str = Q, offset: int = 0, **more: Any) -> Work:
    request = Request(
        id=name,
        tenant="acme",
        tier=tier,
        model="m",
        endpoint=COMPLETIONS,
        body=Body(prompt="x", n=more.pop("n", 1)),
        deadlines=Deadlines(first_token_seconds=5.0),
    )
    fields: dict[str, Any] = {"epoch": 1, "start_by_s": 10.0, "end_by_s": 100.0, **more}
    return Work(
        request=request,
        q=q,
        offset=offset,
        reply_partition=0,
        handle=Handle(offset),
        made_ms=0,
        append_ms=0,
        arrived_s=0.0,
        **fields,
    )


def started(commands: list[Command]) -> list[str]:
    return [it.work.request.id for it in commands if isinstance(it, StartOnEngine)]


def ends(commands: list[Command]) -> list[EndWork]:
    return [it for it in commands if isinstance(it, EndWork)]


def finish(it: Work) -> EngineReported:
    return EngineReported([RunEnded(it.run_id, 3, 1)])


def test_premium_goes_first_and_within_a_tier_the_first_come() -> None:
    core = scheduler(slots=0)
    tiers: list[Tier] = ["batch", "free", "standard", "premium", "premium"]
    for number, tier in enumerate(tiers):
        core.handle(Arrived(work(f"{tier}{number}", tier=tier)), 0)
    assert core.waiting() == 5
    commands = core.handle(CapacityChanged(5), 1)
    assert started(commands) == ["premium3", "premium4", "standard2", "free1", "batch0"]
    assert (core.waiting(), core.running) == (0, 5)


def test_what_an_earlier_owner_had_begun_goes_before_the_rest_of_its_tier() -> None:
    core = scheduler()
    core.handle(Arrived(work("runs")), 0.0)
    for number, (name, spoken) in enumerate((("new", False), ("cut", True), ("cut too", True))):
        core.handle(Arrived(work(name, offset=number + 1, spoken=spoken)), 0.0)
    core.handle(Arrived(work("urgent", tier="premium", offset=9)), 0.0)
    order = []
    for _ in range(4):
        (running,) = [it for it in core.works() if it.phase is Phase.RUNNING]
        order += started(core.handle(finish(running), 1.0))
    assert order == ["urgent", "cut", "cut too", "new"]


def test_no_more_run_than_there_are_slots() -> None:
    core = scheduler(slots=2)
    works = [work(str(number)) for number in range(4)]
    assert [started(core.handle(Arrived(it), 0)) for it in works] == [["0"], ["1"], [], []]
    commands = core.handle(finish(works[0]), 1)
    assert started(commands) == ["2"]
    assert core.running == 2


def test_outputs_become_contiguous_tokens_of_each_choice() -> None:
    core = scheduler()
    it = work("a", n=2)
    core.handle(Arrived(it), 0)
    run = it.run_id
    reports: list[Report] = [
        Output(run, 0, (1, 2), "ab"),
        Output(run, 1, (9,), "z"),
        Output(run, 0, (3,), "c", finish_reason="length"),
        Output(run, 1, (), "", finish_reason="stop"),
        RunEnded(run, 5, 2),
    ]
    commands = core.handle(EngineReported(reports), 1)
    said = [command.event for command in commands if isinstance(command, PublishReply)]
    assert [(t.choice, t.seq, t.token_ids) for t in said if isinstance(t, Tokens)] == [
        (0, 0, (1, 2)),
        (1, 0, (9,)),
        (0, 2, (3,)),
        (1, 1, ()),
    ]
    (end,) = ends(commands)
    assert isinstance(end.event, Finished)
    assert end.event.counts == (3, 1)
    assert end.event.finish_reasons == ("length", "stop")
    assert (end.event.usage.prompt_tokens, end.event.usage.completion_tokens) == (5, 4)


def test_reports_of_an_ended_run_are_ignored() -> None:
    core = scheduler()
    it = work("a")
    core.handle(Arrived(it), 0)
    core.handle(finish(it), 1)
    assert core.handle(EngineReported([Output(it.run_id, 0, (1,), "a")]), 2) == []


def test_an_engine_error_fails_the_request_and_frees_the_slot() -> None:
    core = scheduler()
    it = work("a")
    core.handle(Arrived(it), 0)
    error = ErrorInfo(code="engine_failed", message="no")
    commands = core.handle(EngineReported([RunEnded(it.run_id, 0, 0, error)]), 1)
    (end,) = ends(commands)
    assert isinstance(end.event, Failed)
    assert (end.event.error, core.running) == (error, 0)


def test_a_cancel_ends_what_waits_and_what_runs() -> None:
    core = scheduler()
    running, waiting = work("a"), work("b")
    core.handle(Arrived(running), 0)
    core.handle(Arrived(waiting), 0)
    commands = core.handle(CancelRequested("acme", "b", False), 1)
    assert [type(it) for it in commands] == [EndWork]
    commands = core.handle(CancelRequested("acme", "a", False), 1)
    assert AbortOnEngine(running.run_id) in commands
    assert isinstance(ends(commands)[0].event, Cancelled)
    assert (core.running, list(core.works())) == (0, [])
    assert started(core.handle(Arrived(work("c")), 2)) == ["c"], "b does not come back"


def test_another_tenants_cancel_changes_nothing() -> None:
    core = scheduler()
    core.handle(Arrived(work("a")), 0)
    assert core.handle(CancelRequested("other", "a", False), 1) == []
    assert core.running == 1


def test_a_cancel_that_comes_first_is_remembered_within_bounds() -> None:
    core = scheduler(slots=5, cancelled_max=2)
    for name in ("a", "b", "c"):
        core.handle(CancelRequested("acme", name, False), 0)
    assert started(core.handle(Arrived(work("a")), 1)) == ["a"], "forgotten beyond the bound"
    for name in ("b", "c"):
        (end,) = ends(core.handle(Arrived(work(name)), 1))
        assert isinstance(end.event, Cancelled)


def test_what_is_looked_up_takes_no_place_from_what_was_just_heard() -> None:
    core = scheduler(slots=5, cancelled_max=3)
    for name, earlier in (("b", False), ("c", False), ("c", True), ("a", True), ("too much", True)):
        core.handle(CancelRequested("acme", name, earlier), 0)
    assert started(core.handle(Arrived(work("too much")), 1)) == ["too much"]
    core.handle(CancelRequested("acme", "d", False), 1)
    assert started(core.handle(Arrived(work("a")), 1)) == ["a"], "what was looked up is the oldest"
    core.handle(CancelRequested("acme", "e", False), 1)
    assert started(core.handle(Arrived(work("b")), 1)) == ["b"], "then what was heard first"
    for name in ("c", "d", "e"):
        (end,) = ends(core.handle(Arrived(work(name)), 1))
        assert isinstance(end.event, Cancelled)


def test_what_is_looked_up_ends_what_runs_though_there_is_no_place_for_it() -> None:
    core = scheduler(cancelled_max=1)
    core.handle(CancelRequested("acme", "b", False), 0)
    core.handle(Arrived(work("a")), 0)
    (end,) = ends(core.handle(CancelRequested("acme", "a", True), 1))
    assert isinstance(end.event, Cancelled)


@pytest.mark.parametrize(
    ("slots", "end_by_s", "at_s", "deadline"),
    [(0, 100.0, 10.0, "start"), (1, 100.0, 5.0, "first_token"), (1, 4.0, 4.0, "total")],
)
def test_each_deadline_ends_the_request(
    slots: int, end_by_s: float, at_s: float, deadline: str
) -> None:
    core = scheduler(slots)
    core.handle(Arrived(work("a", end_by_s=end_by_s)), 0)
    assert core.handle(Tick(), at_s - 0.01) == []
    (end,) = ends(core.handle(Tick(), at_s))
    assert isinstance(end.event, Expired)
    assert end.event.deadline == deadline
    assert (core.running, core.waiting()) == (0, 0)


def test_what_an_engine_says_after_the_total_deadline_is_not_heard() -> None:
    core = scheduler()
    it = work("a")
    core.handle(Arrived(it), 0)
    said: list[Report] = [Output(it.run_id, 0, (1,), "a"), RunEnded(it.run_id, 3, 1)]
    (end,) = ends(core.handle(EngineReported(said), 100.0))
    assert isinstance(end.event, Expired)
    assert end.event.counts == (0,)


def test_what_fails_after_its_total_deadline_has_expired() -> None:
    error = ErrorInfo(code="result_expired", message="off the log")
    for at_s, kind in ((99.0, Failed), (100.0, Expired)):
        (end,) = ends(scheduler().fail(work("a"), error, at_s))
        assert isinstance(end.event, kind)


def test_a_token_in_time_takes_the_first_token_deadline_away() -> None:
    core = scheduler()
    it = work("a")
    core.handle(Arrived(it), 0)
    core.handle(EngineReported([Output(it.run_id, 0, (1,), "a")]), 4)
    assert core.handle(Tick(), 50) == []


def test_what_begun_elsewhere_comes_beside_a_copy_of_it_and_both_keep_their_deadlines() -> None:
    core = scheduler()
    copy, begun = work("a"), work("a", offset=1, spoken=True)
    for it in (copy, begun):
        core.handle(Arrived(it), 0)
    assert list(core.works()) == [copy, begun]
    core.handle(finish(copy), 1)
    assert list(core.works()) == [begun]
    (end,) = ends(core.handle(Tick(), 6.0))
    assert end.work is begun
    assert list(core.works()) == []


def test_the_first_token_is_not_due_before_the_body_that_names_its_deadline_was_read() -> None:
    core, it = scheduler(), work("a", spoken=True, unread="its record")
    core.handle(Arrived(it), 0)
    assert core.handle(Tick(), 50.0) == []
    it.unread, it.first_token_by_s = None, 60.0
    assert core.handle(Tick(), 59.9) == []
    (end,) = ends(core.handle(Tick(), 60.0))
    assert isinstance(end.event, Expired)


def test_a_tick_before_every_deadline_looks_at_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    core = scheduler()
    looked = Mock(return_value=[])
    monkeypatch.setattr(core, "works", looked)
    core.handle(Arrived(work("runs")), 0)
    core.handle(Arrived(work("waits")), 0)
    for tenth in range(50):
        core.handle(Tick(), tenth / 10)
    looked.assert_not_called()
    core.handle(Tick(), 5.0)
    looked.assert_called()  # the first token is due


def test_what_comes_after_its_deadline_is_never_started() -> None:
    core = scheduler()
    (end,) = ends(core.handle(Arrived(work("a")), 10))
    assert isinstance(end.event, Expired)
    assert end.event.deadline == "start"
    assert started(core.handle(Arrived(work("b", spoken=True)), 10)) == ["b"], "it was started"


def test_the_same_request_again_on_one_q_is_run_once() -> None:
    core = scheduler(slots=5)
    first, second, third = (work("a", offset=offset) for offset in range(3))
    core.handle(Arrived(first), 0)
    assert core.handle(Arrived(second), 0) == []
    assert first.followers == [second.handle]
    core.handle(finish(first), 1)
    assert core.handle(Arrived(third), 2) == [CompleteOffset(third.handle)]
    assert started(core.handle(Arrived(work("a", q="other/1")), 2)) == ["a"]


def test_a_copy_that_readers_are_bound_to_is_run_though_the_same_request_runs() -> None:
    """Its events alone are visible: completed with the other copy, it would never be answered."""
    core = scheduler(slots=2)
    first, bound = work("a", offset=1), work("a", offset=2, spoken=True)
    core.handle(Arrived(first), 0)
    assert started(core.handle(Arrived(bound), 0)) == ["a"]
    assert first.followers == []
    (end,) = ends(core.handle(finish(bound), 1))
    assert (end.work, end.event.offset) == (bound, 2)


def test_dropped_partitions_are_forgotten_and_nothing_is_said() -> None:
    core = scheduler()
    running, waiting, kept = work("a"), work("b"), work("c", q="other/1")
    for it in (running, waiting, kept):
        core.handle(Arrived(it), 0)
    commands = core.handle(Dropped(frozenset({Q})), 1)
    assert commands[0] == AbortOnEngine(running.run_id)
    assert (started(commands), len(commands)) == (["c"], 2)
    assert list(core.works()) == [kept]
    again = work("a", epoch=2)
    core.handle(finish(kept), 2)
    assert started(core.handle(Arrived(again), 2)) == ["a"], "a new epoch may run it again"


def test_draining_starts_nothing_and_lets_what_runs_end() -> None:
    core = scheduler()
    running, waiting = work("a"), work("b")
    core.handle(Arrived(running), 0)
    core.handle(Arrived(waiting), 0)
    core.handle(Draining(), 1)
    commands = core.handle(finish(running), 2)
    assert isinstance(ends(commands)[0].event, Finished)
    assert started(commands) == []
    assert core.waiting() == 1
