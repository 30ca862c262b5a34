"""What a change costs or saves: two checkouts under the same load, by turns.

    git worktree add ../old HEAD~1
    python -m benchmarks.checkouts ../old . --case accept whole

A-B-B-A: each turn is a fresh stack of one checkout, with this Python and its packages, and several rounds of each case
(those of `benchmarks.pipeline`, as the checkout has them). Machines differ more from minute to minute than
most changes do: only figures of one call are to be compared. Nothing is kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PARTS = ("api", "worker", "broker", "client")
CASES = ("accept", "whole", "streamed", "paced_64", "paced_256")
Round = Mapping[str, float]
"""CPU-µs per request by case and part, as `accept, api`."""


def measure(cases: Sequence[str], rounds: int) -> list[dict[str, float]]:
    """So many rounds of this checkout, and one before that warms up."""
    from benchmarks.load import LoadClient  # noqa: PLC0415  of the checkout
    from benchmarks.pipeline import STACKS, Bench  # noqa: PLC0415
    from benchmarks.stack import RunningStack, engine_words  # noqa: PLC0415

    found: list[dict[str, float]] = [{} for _ in range(rounds)]
    for known, options in STACKS.values():
        here = [case for case in known if case in cases]
        if not here:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
            RunningStack(Path(folder), *engine_words(*options)) as stack,
            LoadClient() as load,
        ):
            bench = Bench(stack, load)
            for number in range(-1, rounds):
                for case in here:
                    figures = bench.measure(known[case])
                    if number >= 0:
                        found[number] |= {
                            f"{case}, {part}": figures[f"{part}_cpu_us_per_request"]
                            for part in PARTS
                        }
    return found


def turn(checkout: Path, cases: Sequence[str], rounds: int) -> list[Round]:
    """Measures in a process whose code is the checkout's."""
    words = [sys.executable, __file__, "--here", "--rounds", str(rounds), "--case", *cases]
    done = subprocess.run(
        words,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: the turn failed; the lines above say why")
    found: list[Round] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(old: Sequence[Round], new: Sequence[Round]) -> str:
    """A line for each case and part."""
    lines = [f"{'CPU-µs per request':24} {'old':>22} {'new':>22}  new / old"]
    for name in old[0]:
        pair = [[it[name] for it in rounds] for rounds in (old, new)]
        cells = [f"{statistics.median(it):.0f} ({min(it):.0f} to {max(it):.0f})" for it in pair]
        ratio = statistics.median(pair[1]) / max(statistics.median(pair[0]), 1e-9)
        lines.append(f"{name:24} {cells[0]:>22} {cells[1]:>22}  {ratio:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Runs the turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW")
    parser.add_argument("--case", nargs="+", choices=CASES, default=["accept", "whole", "streamed"])
    parser.add_argument("--rounds", type=int, default=5, help="of each case in a turn")
    parser.add_argument("--turns", type=int, default=4, help="A-B-B-A is 4")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.here:
        print(json.dumps(measure(words.case, words.rounds)))
        return
    checkouts = [it.resolve() for it in words.checkouts]
    if len(checkouts) != 2 or not all((it / "benchmarks").is_dir() for it in checkouts):
        parser.error("name two checkouts, the old one and the new one")
    found: tuple[list[Round], list[Round]] = ([], [])
    for number in range(words.turns):
        which = (0, 1, 1, 0)[number % 4]
        found[which].extend(turn(checkouts[which], words.case, words.rounds))
        print(f"turn {number + 1} of {words.turns}: {checkouts[which]}", file=sys.stderr)
    if not all(found):
        parser.error("--turns must be 2 at least")
    print(show(*found))


if __name__ == "__main__":
    main()
