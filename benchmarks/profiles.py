"""Where the CPU goes: sampling profiles of API and worker under each load.

    python -m benchmarks.profiles --case accept --part api

Keeps, per case and part, the folded stacks in `build/profiles/`, which git ignores (any viewer of flame
graphs reads them), and prints the functions that most of the time is spent in: by themselves, and with
all they call. What waits is left out, but for the thread that serves metrics: py-spy takes its `select`
for work. Needs py-spy (`pip install py-spy`).
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.load import LoadClient
from benchmarks.pipeline import STACKS, Bench
from benchmarks.stack import RunningStack, engine_words

FOLDER = Path("build/profiles")
SECONDS = 15
SAMPLES_PER_SECOND = 250
SHOWN = 45
CASES = {case: name for name, (cases, _) in STACKS.items() for case in cases}
PARTS = ("api", "worker")


def shares(folded: Iterable[str], *, whole: bool) -> list[tuple[str, float]]:
    """Function -> its share of all samples, largest first; `whole`: with what it calls."""
    counts: Counter[str] = Counter()
    total = 0
    for line in folded:
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        total += int(count)
        for frame in set(frames) if whole else frames[-1:]:
            counts[frame] += int(count)
    return [(frame, count / total) for frame, count in counts.most_common(SHOWN)]


def record(pid: int, target: Path, seconds: int) -> "subprocess.Popen[bytes]":
    """Starts py-spy on a process."""
    spy = shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not there: pip install py-spy")
    words = [spy, "record", "--pid", str(pid), "--duration", str(seconds)]
    words += ["--rate", str(SAMPLES_PER_SECOND), "--format", "raw", "--output", str(target)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def profile(case: str, parts: Iterable[str], seconds: int) -> None:
    """Loads a stack with one case for so long, and samples its parts meanwhile."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    cases, options = STACKS[CASES[case]]
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-profile-") as folder,
        RunningStack(Path(folder), *engine_words(*options)) as stack,
        LoadClient() as load,
    ):
        bench = Bench(stack, load)
        bench.measure(cases[case])
        files = {part: FOLDER / f"{case}-{part}.txt" for part in parts}
        spies = [
            record(stack.processes(part)[0].pid, target, seconds) for part, target in files.items()
        ]
        while any(spy.poll() is None for spy in spies):
            bench.measure(cases[case])
    for part, target in files.items():
        folded = target.read_text().splitlines()
        for title, whole in (("by themselves", False), ("with what they call", True)):
            print(f"\n{case}, {part}: {title}")
            for frame, share in shares(folded, whole=whole):
                print(f"  {share:6.1%}  {frame}")


def main() -> None:
    """One case, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    words = parser.parse_args()
    for case in words.case or list(CASES):
        profile(case, words.part or PARTS, words.seconds)


if __name__ == "__main__":
    main()
