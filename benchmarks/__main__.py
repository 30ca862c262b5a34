"""All benchmarks, one after the other: `make bench`, `make bench FULL=1`.

Quick (the default): few repeats, results beside the kept ones, to look at. Full: what
`benchmarks/results` and docs/performance.md hold. What was cut off goes on where it was, if the code is
the same; `--fresh` measures the chosen ones again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.results_file import FRESH, KEPT_IN, QUICK_RESULTS, RESULTS, UNFINISHED, code_state


class Bench(NamedTuple):
    """A module of this folder, the name of its result, and about how many minutes it takes."""

    module: str
    result: str
    quick_arguments: str
    quick_minutes: float
    full_minutes: float
    needs_vllm: bool = False


BENCHES = (
    Bench("pipeline", "pipeline", "--repeats 2", 2, 3),
    Bench("sse_response", "sse_response", "--repeats 2", 0.5, 1),
    Bench("open_loop", "open_loop", "--repeats 1", 2, 6),
    Bench("open_streams", "open_streams", "--repeats 1", 4, 12),
    Bench("cancels", "cancels", "--repeats 1", 1, 2),
    Bench("replicas", "replicas", "--repeats 1", 2, 7),
    Bench("late_followers", "late_followers", "--repeats 1 --lengths 2000 20000", 1, 6),
    Bench("recovery", "recovery", "--repeats 1", 6, 12),
    Bench("log_bytes", "log_bytes", "", 1, 1),
    Bench("backlog", "backlog", "--repeats 1 --depths 1000 100000", 2, 5),
    Bench("against_litellm", "litellm", "--repeats 2", 3, 3),
    Bench("against_vllm", "vllm_serve", "--repeats 1", 5, 20, needs_vllm=True),
)


def minutes(benches: Sequence[Bench], full: bool) -> float:
    """About how long they take."""
    return sum(it.full_minutes if full else it.quick_minutes for it in benches)


class House:
    """Runs what is not done yet, and remembers what is."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._folder = RESULTS if full else QUICK_RESULTS
        self._environ = {**os.environ, KEPT_IN: str(self._folder)}
        self._state = UNFINISHED / f"done-{'full' if full else 'quick'}.json"
        self._code = code_state()
        self._done: list[str] = []
        if self._state.exists():
            found = json.loads(self._state.read_text())
            self._done = found["done"] if found["code"] == self._code else []

    def forget(self, benches: Sequence[Bench]) -> None:
        """They are measured anew, also what a run that was cut off had measured of them."""
        self._done = [it for it in self._done if it not in {bench.module for bench in benches}]
        self._environ[FRESH] = "1"

    def run(self, benches: Sequence[Bench]) -> int:
        """Exit code: 1 if one of them failed; the others are run all the same."""
        left = [it for it in benches if it.module not in self._done]
        for bench in benches:
            if bench not in left:
                print(f"{bench.module}: done already (--fresh measures again)")
        failed, skipped = [], []
        for number, bench in enumerate(left, 1):
            remaining = minutes(left[number - 1 :], self._full)
            print(
                f"== {bench.module}, {number} of {len(left)}; about {remaining:.0f} minutes to go ==",
                flush=True,
            )
            if bench.needs_vllm and find_spec("vllm") is None:
                print("skipped: vLLM is not installed (make setup ENGINE=vllm)")
                skipped.append(bench.module)
                continue
            began_s = time.monotonic()
            if self._one(bench):
                self._note(bench)
                print(f"== {bench.module}: {(time.monotonic() - began_s) / 60:.1f} minutes ==")
            else:
                failed.append(bench.module)
        if failed:
            print(f"failed: {', '.join(failed)}; the lines above say why", file=sys.stderr)
            return 1
        if {it.module for it in BENCHES} <= {*self._done, *skipped}:
            self._state.unlink(missing_ok=True)  # all of it: the next call begins anew
        return 0

    def _one(self, bench: Bench) -> bool:
        words = [sys.executable, "-m", f"benchmarks.{bench.module}"]
        words += [] if self._full else bench.quick_arguments.split()
        return subprocess.run(words, check=False, env=self._environ).returncode == 0

    def _note(self, bench: Bench) -> None:
        self._done.append(bench.module)
        self._state.parent.mkdir(parents=True, exist_ok=True)
        self._state.write_text(json.dumps({"code": self._code, "done": self._done}))

    def say_how_to_compare(self, benches: Sequence[Bench]) -> None:
        """Against what is kept."""
        print("To compare with the figures that are kept:")
        for bench in benches:
            kept, found = RESULTS / f"{bench.result}.json", self._folder / f"{bench.result}.json"
            if kept.exists() and found.exists():
                shown = [it.relative_to(Path.cwd()) for it in (kept, found)]
                print(f"  .venv/bin/inferlog bench compare {shown[0]} {shown[1]}")


def main() -> int:
    """Runs them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [it.module for it in BENCHES]
    parser.add_argument("--full", action="store_true", help="all repeats; the results are kept")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    words = parser.parse_args()
    benches = [it for it in BENCHES if it.module in words.only]
    house = House(full=words.full)
    if words.fresh:
        house.forget(benches)
    code = house.run(benches)
    if not words.full:
        house.say_how_to_compare(benches)
    return code


if __name__ == "__main__":
    sys.exit(main())
