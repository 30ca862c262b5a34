"""Where the CPU goes: sampling profiles of API, worker and load client under each load.

    python -m benchmarks.profiles --case accept --part api

Keeps, per case and part, a flame graph (SVG, of a run of its own) and the folded stacks in `build/profiles/`,
which git ignores, and prints the functions that most of the time is spent in: by themselves, and with all
they call. What waits is left out, and from what is printed so are other threads than the event loop's:
py-spy takes their waiting for work. Installs py-spy into `build/bench-profiles` at the first call.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.load import LoadClient
from benchmarks.pipeline import STACKS, Bench, Case
from benchmarks.stack import RunningStack, engine_words

ROOT = Path(__file__).parents[1]
ENVIRONMENT = "bench-profiles"
OTHER_THREAD = "Thread._bootstrap ("
FOLDER = ROOT / "build" / "profiles"
SECONDS = 15
SAMPLES_PER_SECOND = 250
SHOWN = 30
ALL_SHARE = 0.98
FORMATS = {"raw": "txt", "flamegraph": "svg"}
"""py-spy writes one of them in one run."""
LOADS: dict[str, tuple[Case, tuple[str, ...]]] = {
    case: (load, options) for cases, options in STACKS.values() for case, load in cases.items()
} | {
    "slow_1000": (
        Case(kind="streamed", requests=1000, clients=1000, tokens=100),
        ("slots=1024", "tokens_per_second=10"),
    )
}
"""The load and the engine's options: those of `benchmarks.pipeline`, and many slow streams."""
PARTS = ("api", "worker", "client")


def shares(folded: Iterable[str], *, whole: bool) -> list[tuple[str, float]]:
    """Function -> its share of all samples, largest first; `whole`: with what it calls.

    What nearly all samples are in, down to the event loop, is left out.
    """
    counts: Counter[str] = Counter()
    total = 0
    for line in folded:
        stack, _, count = line.rpartition(" ")
        if OTHER_THREAD in stack:
            continue
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        total += int(count)
        for frame in set(frames) if whole else frames[-1:]:
            counts[frame] += int(count)
    found = [(frame, count / total) for frame, count in counts.most_common()]
    return [it for it in found if it[1] < ALL_SHARE][:SHOWN]


def py_spy() -> Path:
    """Installed, of a pinned set of its own."""
    script = ROOT / "requirements" / "bench_environment.sh"
    subprocess.run(["bash", str(script), ENVIRONMENT, sys.executable], check=True)
    return ROOT / "build" / ENVIRONMENT / "bin" / "py-spy"


def record(spy: Path, pid: int, form: str, target: Path, seconds: int) -> "subprocess.Popen[bytes]":
    """Starts py-spy on a process."""
    words = [str(spy), "record", "--pid", str(pid), "--duration", str(seconds)]
    words += ["--rate", str(SAMPLES_PER_SECOND), "--format", form, "--output", str(target)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def profile(case: str, parts: Sequence[str], seconds: int) -> None:
    """Loads a stack with one case for so long, and samples the parts meanwhile."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    spy = py_spy()
    of_load, options = LOADS[case]
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-profile-") as folder,
        RunningStack(Path(folder), *engine_words(*options)) as stack,
        LoadClient() as load,
    ):
        bench = Bench(stack, load)
        bench.measure(of_load)
        pids = {
            part: load.pid if part == "client" else stack.processes(part)[0].pid for part in parts
        }
        for form, ending in FORMATS.items():
            spies = [
                record(spy, pid, form, FOLDER / f"{case}-{part}.{ending}", seconds)
                for part, pid in pids.items()
            ]
            while any(it.poll() is None for it in spies):
                bench.measure(of_load)
            for it in spies:
                said = it.communicate()[1].decode(errors="replace")
                if it.returncode:
                    raise SystemExit(f"py-spy gave up (it may need root):\n{said}")
    for part in parts:
        print(f"\n{case}, {part}: {FOLDER / f'{case}-{part}.svg'}")
        folded = (FOLDER / f"{case}-{part}.txt").read_text().splitlines()
        for title, whole in (("by themselves", False), ("with what they call", True)):
            print(f"\n{case}, {part}: {title}")
            for frame, share in shares(folded, whole=whole):
                print(f"  {share:6.1%}  {frame}")


def main() -> None:
    """One case, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=list(LOADS), action="append")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    words = parser.parse_args()
    for case in words.case or list(LOADS):
        profile(case, words.part or PARTS, words.seconds)


if __name__ == "__main__":
    main()
