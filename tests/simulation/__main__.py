"""`make sim SEEDS=500 [SEED=17] [REQUESTS=1000000]`: many seeds with a summary, or one in full."""

import argparse
import json
import os
import sys
from pathlib import Path

from inferlog.progress import progress
from tests.simulation.summary import Summary, run_many
from tests.simulation.world import run

VOLUME_SIZE = 64.0
"""Where requests are counted and not seeds: what a world costs beside its requests is then shared by
many of them, and faults hit more of them at once."""


def main() -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    parser.add_argument("--requests", type=int, help="stop once so many requests were made")
    parser.add_argument(
        "--size",
        type=float,
        help=f"scales the requests of a seed; {VOLUME_SIZE:g} with --requests, else 1",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--result", type=Path, help="keep the summary here, as JSON")
    arguments = parser.parse_args()
    wanted = arguments.requests
    size = arguments.size or (VOLUME_SIZE if wanted is not None else 1.0)
    if arguments.seed is not None:
        return _show(arguments.seed, size)
    with progress("seeds" if wanted is None else "requests", wanted or arguments.seeds) as done:

        def on_progress(total: Summary) -> None:
            done(min(total.seeds if wanted is None else total.requests, wanted or total.seeds))

        total = run_many(
            arguments.first,
            arguments.seeds,
            size=size,
            processes=arguments.processes,
            on_progress=on_progress,
            enough=lambda it: wanted is not None and it.requests >= wanted,
        )
    text = json.dumps({"first_seed": arguments.first, "size": size, **total.table()}, indent=2)
    print(text)  # noqa: T201  (a command)
    if arguments.result is not None:
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(text + "\n")
    for seed, violation in total.failed[:20]:
        print(f"seed {seed}: {violation}\n    {repeat(seed, size)}", file=sys.stderr)  # noqa: T201  (a command)
    return 1 if total.failed else 0


def repeat(seed: int, size: float = 1.0) -> str:
    """The command that shows a seed again."""
    return f"make sim SEED={seed}" + ("" if size == 1.0 else f" SIZE={size:g}")


def _show(seed: int, size: float) -> int:
    outcome = run(seed, size=size, traced=True)
    print("\n".join(outcome.lines))  # noqa: T201  (a command)
    print(f"\nseed {seed}: {outcome.requests} requests, checksum {outcome.digest:08x}")  # noqa: T201  (a command)
    for violation in outcome.violations:
        print(f"  {violation}")  # noqa: T201  (a command)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
