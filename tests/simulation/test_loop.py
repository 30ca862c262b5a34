"""The loop without a clock: time, order, and what happens to stopped and killed processes."""

import asyncio

import pytest

from tests.simulation.loop import START_S, Process, SimLoop, Stuck


async def count(loop: SimLoop, said: list[tuple[str, float]], name: str) -> None:
    try:
        while True:
            said.append((name, round(loop.time() - START_S, 3)))
            await asyncio.sleep(1.0)
    finally:
        said.append((f"{name} ended", round(loop.time() - START_S, 3)))


def started(loop: SimLoop, said: list[tuple[str, float]], name: str) -> Process:
    process = loop.process(name)
    loop.spawn(process, count(loop, said, name))
    return process


def test_time_jumps_to_the_next_timer() -> None:
    loop, said = SimLoop(0), list[tuple[str, float]]()
    started(loop, said, "a")
    loop.run_until_complete(asyncio.sleep(3.5))
    assert said == [("a", 0.0), ("a", 1.0), ("a", 2.0), ("a", 3.0)]
    loop.take_down()
    assert said[-1][0] == "a ended"


def test_a_paused_process_does_on_waking_what_was_due() -> None:
    loop, said = SimLoop(0), list[tuple[str, float]]()
    process = started(loop, said, "a")
    loop.call_for(loop.world, 0.5, loop.pause, process)
    loop.call_for(loop.world, 2.7, loop.wake, process)
    loop.run_until_complete(asyncio.sleep(4.0))
    loop.take_down()
    assert said[:3] == [("a", 0.0), ("a", 2.7), ("a", 3.7)]


def test_nothing_of_a_killed_process_runs_not_even_its_finally() -> None:
    loop, said = SimLoop(0), list[tuple[str, float]]()
    process = started(loop, said, "a")
    loop.call_for(loop.world, 0.5, loop.kill, process)
    loop.run_until_complete(asyncio.sleep(4.0))
    assert said == [("a", 0.0)]
    loop.take_down()
    assert said[1:] == [("a ended", 4.0)]


def order(seed: int) -> list[str]:
    loop, said = SimLoop(seed), list[str]()
    for name in "abcd":
        process = loop.process(name)
        for number in range(3):
            loop.call_for(process, 1.0, said.append, f"{name}{number}")
    loop.run_until_complete(asyncio.sleep(2.0))
    loop.take_down()
    return said


def test_order_within_a_process_is_kept_and_between_processes_drawn() -> None:
    orders = [order(seed) for seed in range(8)]
    assert all(
        [it for it in said if it[0] == name] == [f"{name}{number}" for number in range(3)]
        for said in orders
        for name in "abcd"
    )
    assert len({tuple(said) for said in orders}) > 1
    assert order(3) == orders[3]


def test_a_loop_that_lets_no_time_pass_is_told_apart_from_work() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    loop = SimLoop(0)
    with pytest.raises(Stuck, match="time does not go on"):
        loop.run_until_complete(spin())
    loop.take_down()


def test_a_world_in_which_nothing_can_happen_any_more_is_stuck() -> None:
    loop = SimLoop(0)
    with pytest.raises(Stuck, match="nothing will ever happen"):
        loop.run_until_complete(asyncio.Event().wait())
    loop.take_down()
