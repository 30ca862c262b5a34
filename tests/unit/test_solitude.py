"""What may be poison runs alone; the others wait for it, but never for ever."""

from typing import Any

from core.offsets import Handle
from core.runs import Logged, Output, RunEnded
from core.scheduler import Scheduler
from core.work import (
    AbortOnEngine,
    Arrived,
    CancelRequested,
    Command,
    Draining,
    Dropped,
    EndWork,
    EngineReported,
    PublishReply,
    StartOnEngine,
    Tick,
    Work,
)
from schemas.replies import ErrorInfo, Expired, Finished, Released
from schemas.requests import COMPLETIONS, Body, Request, Tier

Q = "requests.default.standard/0"
HOLD = 10.0


def scheduler(slots: int = 4, starts_max: int = 3) -> Scheduler:
    return Scheduler(
        "w1",
        slots,
        cancelled_max=10,
        run_seconds=1000,
        starts_max=starts_max,
        alone_hold_seconds=HOLD,
    )


def work(name: str, starts: int = 0, *, tier: Tier = "standard", **more: Any) -> Work:
    body = more.pop("body", Body(prompt="x", n=more.pop("n", 1)))
    request = Request(id=name, tenant="acme", tier=tier, model="m", endpoint=COMPLETIONS, body=body)
    fields: dict[str, Any] = {"start_by_s": 1000.0, "end_by_s": 1000.0, **more}
    return Work(
        request=request,
        q=fields.pop("q", Q),
        offset=0,
        epoch=1,
        reply_partition=0,
        handle=Handle(0),
        made_ms=0,
        append_ms=0,
        arrived_s=0.0,
        starts=starts,
        suspect=starts > 0,
        spoken=starts > 0,
        **fields,
    )


def started(commands: list[Command]) -> list[str]:
    return [it.work.request.id for it in commands if isinstance(it, StartOnEngine)]


def arrive(core: Scheduler, *works: Work, now_s: float = 0.0) -> list[str]:
    return [name for it in works for name in started(core.handle(Arrived(it), now_s))]


def token(it: Work, now_s: float, core: Scheduler) -> list[Command]:
    return core.handle(EngineReported([Output(it.run_id, 0, (1,), "a")]), now_s)


def end(it: Work, now_s: float, core: Scheduler) -> list[Command]:
    return core.handle(EngineReported([RunEnded(it.run_id, 1, 0)]), now_s)


def test_the_last_start_before_parking_is_alone_and_says_its_number() -> None:
    core = scheduler()
    suspect, other = work("suspect", 2), work("other")
    (start,) = core.handle(Arrived(suspect), 0)
    assert isinstance(start, StartOnEngine)
    assert (start.started.starts, start.awaited) == (3, True)
    assert arrive(core, other) == []
    assert (core.alone, core.running, core.waiting()) == (True, 1, 1)


def test_one_start_fewer_runs_beside_others() -> None:
    core = scheduler()
    assert arrive(core, work("once", 1), work("other")) == ["once", "other"]
    assert not core.alone


def test_when_that_is_follows_the_setting() -> None:
    core = scheduler(starts_max=2)
    assert arrive(core, work("once", 1), work("other")) == ["once"]


def test_a_new_token_ends_the_solitude() -> None:
    core = scheduler()
    suspect, other = work("suspect", 2), work("other")
    arrive(core, suspect, other)
    assert started(core.handle(EngineReported([Output(suspect.run_id, 0, (), "")]), 1)) == []
    commands = token(suspect, 2, core)
    assert started(commands) == ["other"]
    assert (core.running, core.alone, suspect.starts) == (2, False, 0)


def test_whatever_ends_it_lets_the_others_go_on() -> None:
    error = ErrorInfo(code="engine_failed", message="no")
    for how in ("finished", "failed", "cancelled", "dropped", "expired"):
        core = scheduler()
        suspect = work("suspect", 2, q="gone/0", end_by_s=5)
        arrive(core, suspect, work("other"))
        match how:
            case "finished":
                commands = end(suspect, 1, core)
            case "failed":
                commands = core.handle(EngineReported([RunEnded(suspect.run_id, 1, 0, error)]), 1)
            case "cancelled":
                commands = core.handle(CancelRequested("acme", "suspect", False), 1)
            case "dropped":
                commands = core.handle(Dropped(frozenset({"gone/0"})), 1)
            case _:
                commands = core.handle(Tick(), 5)
        assert (started(commands), core.alone, core.running) == (["other"], False, 1), how


def test_it_waits_for_what_runs_and_the_others_behind_it() -> None:
    core = scheduler()
    running, suspect, other = work("running"), work("suspect", 2), work("other")
    assert arrive(core, running, suspect, other) == ["running"]
    assert core.waiting("standard") == 2, "both take room"
    assert started(end(running, 1, core)) == ["suspect"]


def test_others_are_held_back_for_a_while_only_and_then_again() -> None:
    core = scheduler()
    arrive(core, work("long"), work("suspect", 2))
    assert arrive(core, work("held"), now_s=1) == []
    assert started(core.handle(Tick(), HOLD - 0.1)) == []
    assert started(core.handle(Tick(), HOLD)) == ["held"]
    assert arrive(core, work("free", tier="free"), now_s=2 * HOLD - 0.1) == ["free"]
    assert arrive(core, work("premium", tier="premium"), now_s=2 * HOLD) == []
    assert started(core.handle(Tick(), 3 * HOLD)) == ["premium"]


def test_its_own_deadline_bounds_how_long_it_waits() -> None:
    core = scheduler()
    arrive(core, work("long"), work("suspect", 2, end_by_s=5), work("held"))
    commands = core.handle(Tick(), 5)
    (ended,) = [it for it in commands if isinstance(it, EndWork)]
    assert isinstance(ended.event, Expired)
    assert started(commands) == ["held"]
    assert core.waiting() == 0


def test_a_cancel_while_it_waits_ends_it() -> None:
    core = scheduler()
    arrive(core, work("long"), work("suspect", 2))
    core.handle(CancelRequested("acme", "suspect", False), 1)
    assert core.waiting() == 0
    assert arrive(core, work("other"), now_s=1) == ["other"]


def test_one_after_the_other_and_the_tried_one_makes_room_at_once() -> None:
    core = scheduler()
    first, second = work("first", 2), work("second", 2)
    assert arrive(core, first, second, work("other")) == ["first"]
    run_id = first.run_id
    commands = token(first, 1, core)
    assert AbortOnEngine(run_id) in commands
    said = [it.event for it in commands if isinstance(it, PublishReply)]
    assert isinstance(said[-1], Released), "so that this start counts as no death"
    assert started(commands) == ["second"]
    commands = token(second, 2, core)
    assert started(commands) == ["first", "other"], "what was tried goes on before its tier"
    assert core.running == 3, "the last one tried need not make room"
    start = next(it for it in commands if isinstance(it, StartOnEngine))
    assert start.run.logged == (Logged((1,), "a"),)
    assert (start.started.starts, start.started.counts, start.awaited) == (1, (1,), True)
    (end_of_first,) = [it for it in end(first, 3, core) if isinstance(it, EndWork)]
    assert isinstance(end_of_first.event, Finished)
    assert end_of_first.event.counts == (1,)


def test_all_that_came_with_its_first_token_is_kept_of_every_choice() -> None:
    core = scheduler()
    had = (Logged((7,), "z"), Logged())
    first = work("first", 2, n=2, resume=had)
    arrive(core, first, work("second", 2))
    run = first.run_id
    reports = [
        Output(run, 0, (8,), "y"),
        Output(run, 1, (1, 2), "ab"),
        Output(run, 1, (), "c", finish_reason="stop"),
    ]
    core.handle(EngineReported(reports), 1)
    assert first.resume == (Logged((7, 8), "zy"), Logged((1, 2), "abc", "stop"))
    assert first.counts == [2, 2]


def test_what_cannot_be_continued_faithfully_does_not_make_room() -> None:
    core = scheduler()
    penalised = work("penalised", 2, body=Body(prompt="x", presence_penalty=1.0))
    arrive(core, penalised, work("second", 2))
    commands = token(penalised, 1, core)
    assert started(commands) == []
    assert (core.running, core.waiting()) == (1, 1)
    assert started(end(penalised, 2, core)) == ["second"]


def test_sixty_four_are_tried_in_the_time_of_their_first_tokens() -> None:
    core = scheduler(slots=64)
    works = [work(str(number), 2) for number in range(64)]
    arrive(core, *works)
    for number, it in enumerate(works):
        assert core.running == 1, "alone"
        token(it, number, core)
    assert core.running == 64


def test_nothing_starts_while_draining() -> None:
    core = scheduler()
    core.handle(Draining(), 0)
    assert arrive(core, work("suspect", 2)) == []
