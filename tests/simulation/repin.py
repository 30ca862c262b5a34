"""`python -m tests.simulation.repin`: finds pinned seeds anew where the product's schedule has changed.

Seeds that still catch their mutation stay; the others are replaced by the first seeds that do. Every
change of what the product awaits, and when, may shift schedules: the mutation is then as wrong as before,
but another seed shows it. Rewrites `pinned.py`; exit code 1 if a mutation was not caught three times.
"""

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.simulation.directed import DIRECTED
from tests.simulation.mutations import MUTATIONS, mutated
from tests.simulation.pinned import CAUGHT_BY
from tests.simulation.world import run

PINNED = Path(__file__).with_name("pinned.py")
WANTED = 3


def catches(name: str, seed: int) -> bool:
    """Whether this seed holds as it is, and not with the mutation."""
    direct = DIRECTED.get(name)
    with mutated(name):
        caught = bool(run(seed, direct=direct).violations)
    return caught and not run(seed, direct=direct).violations


def find(name: str, seeds_max: int) -> tuple[int, ...]:
    """Three seeds that catch the mutation, or as many as there are below the bound."""
    known = CAUGHT_BY.get(name, ())
    found = [seed for seed in known if catches(name, seed)]
    for seed in range(seeds_max):
        if len(found) >= WANTED:
            break
        if seed not in known and catches(name, seed):
            found.append(seed)
    return tuple(sorted(found))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="mutations (all of them)", metavar="MUTATION")
    parser.add_argument("--seeds-max", type=int, default=1500, help="to try for each (1500)")
    parser.add_argument("--processes", type=int, default=2, help="at once (2)")
    chosen = parser.parse_args()
    names = chosen.names or list(MUTATIONS)
    if unknown := set(names) - set(MUTATIONS):
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    short = []
    with ProcessPoolExecutor(chosen.processes) as pool:
        bounds = [chosen.seeds_max] * len(names)
        for name, seeds in zip(names, pool.map(find, names, bounds), strict=True):
            change = "" if seeds == CAUGHT_BY.get(name) else f"  (was {CAUGHT_BY.get(name)})"
            sys.stdout.write(f"{name}: {seeds}{change}\n")
            sys.stdout.flush()
            if len(seeds) < WANTED:
                short.append(name)
            else:
                write(name, seeds)
    if short:
        sys.stderr.write(f"caught too seldom: {', '.join(short)}\n")
    return 1 if short else 0


def write(name: str, seeds: tuple[int, ...]) -> None:
    """Puts the seeds into the file, in their row or in a new one at the end."""
    text = PINNED.read_text()
    row = f'    "{name}": {seeds},\n'
    text, count = re.subn(rf'    "{name}": \([^)]*\),\n', row, text)
    if not count:
        text = re.sub(r"\}\n\Z", row + "}\n", text)
    PINNED.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
