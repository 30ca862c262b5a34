"""The product under simulated faults: seeds that hold, mutations that do not, and the coverage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import repeat
from tests.simulation.directed import DIRECTED
from tests.simulation.mutations import MUTATIONS, mutated
from tests.simulation.pinned import CAUGHT_BY, FOUND
from tests.simulation.reached import SOMETIMES
from tests.simulation.summary import Summary, run_many, run_seeds
from tests.simulation.world import run

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 500
DIRECTED_SEEDS = 15


def assert_held(summary: Summary) -> None:
    """Shows the first seed that failed, as its command would."""
    if summary.failed:
        seed, violation = summary.failed[0]
        lines = run(seed, traced=True).lines
        pytest.fail(
            f"{len(summary.failed)} of {summary.seeds} seeds failed, first {seed}: {violation}\n"
            f"repeat: {repeat(seed)}\n" + "\n".join(lines[-300:])
        )


@pytest.mark.timeout(400)
def test_seeds_hold_and_reach_every_fault_and_branch() -> None:
    summary = run_many(0, SEEDS, processes=os.cpu_count() or 1)
    assert summary.seeds == SEEDS
    assert_held(summary)
    assert summary.requests > 4_000
    missing = [what for what in SOMETIMES if summary.sometimes[what] < SOMETIMES[what]]
    assert missing == []


@pytest.mark.timeout(120)
def test_seeds_that_once_failed_hold() -> None:
    assert_held(run_seeds(FOUND))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", list(MUTATIONS))
def test_each_mutation_is_caught_by_three_seeds(name: str) -> None:
    seeds = CAUGHT_BY[name]
    assert len(seeds) >= 3
    direct = DIRECTED.get(name)
    with mutated(name):
        missed = [seed for seed in seeds if not run(seed, direct=direct).violations]
    assert missed == []
    # as it is it holds: else the mutation would not be what is caught
    assert [it for seed in seeds for it in run(seed, direct=direct).violations] == []


SCHEDULES = {direct.__name__: direct for direct in DIRECTED.values()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_directed_schedules_hold(name: str) -> None:
    runs = [run(seed, direct=SCHEDULES[name]) for seed in range(DIRECTED_SEEDS)]
    assert [f"seed {it.seed}: {violation}" for it in runs for violation in it.violations] == []


def checksums(seeds: range) -> str:
    return " ".join(f"{run(seed).digest:08x}" for seed in seeds)


@pytest.mark.timeout(120)
def test_a_seed_is_the_same_run_in_every_process() -> None:
    code = "from tests.simulation.test_simulation import checksums; print(checksums(range(12)))"
    here = checksums(range(12))
    assert len(set(here.split())) == 12
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("0", "1")
    ]
    said = [it.communicate()[0].split() for it in others]
    assert [it.returncode for it in others] == [0, 0]
    assert said == [here.split()] * 2


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_twenty_thousand_seeds_hold() -> None:
    summary = run_many(SEEDS, 20_000, processes=os.cpu_count() or 1)
    assert summary.seeds == 20_000
    assert_held(summary)
