"""What is kept of a run: the figures with the machine, versions, settings and commit."""

import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil

from topics.kafka_download import KAFKA_VERSION

RESULTS = Path(__file__).parent / "results"
KEPT_IN = "INFERLOG_BENCH_RESULTS"
"""The variable that names the folder for results, whatever is in it."""
FRESH = "INFERLOG_BENCH_FRESH"
"""The variable that, if set, lets a benchmark measure anew what one that was cut off had measured."""
QUICK_RESULTS = Path(__file__).parents[1] / "build" / "bench-quick"
"""For quick looks, which must not replace what is kept."""
UNFINISHED = Path(__file__).parents[1] / "build" / "bench"
"""What was measured by runs that were cut off; git ignores it."""
PACKAGES = (
    *("aiokafka", "fastapi", "httptools", "msgspec", "orjson", "sse-starlette", "starlette"),
    *("uvicorn", "uvloop"),
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
CHANGES = ("status", "--porcelain", "--untracked-files=no", ".", ":!benchmarks/results", ":!docs")
"""What a run of another benchmark writes is no change of what is measured."""

TURNS = 200_000

C = TypeVar("C")
T = TypeVar("T")


def _cpu() -> tuple[str, list[str]]:
    """Model and the flags that matter; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), []
    said = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    flags = set(said.get("flags", "").split())
    return said.get("model name", platform.processor()), [it for it in FLAGS if it in flags]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=RESULTS.parents[1], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes: more than the benchmark's own share is a neighbour's."""
    return [round(it, 2) for it in os.getloadavg()]


def speed() -> dict[str, float]:
    """What a turn of a loop of Python, and the least system call, cost here, in ns.

    Machines of one name differ in either by a factor of two and more, and so do all figures.
    """
    best = {"python_loop_ns": float("inf"), "system_call_ns": float("inf")}
    for _ in range(5):
        began_s, total = time.perf_counter(), 0
        for number in range(TURNS):
            total += number
        called_s = time.perf_counter()
        for _ in range(TURNS):
            os.getppid()
        took = (called_s - began_s, time.perf_counter() - called_s)
        for name, seconds in zip(best, took, strict=True):
            best[name] = min(best[name], round(seconds / TURNS * 1e9, 1))
    return best


def code_state() -> str:
    """Changes with every change of the code, committed or not."""
    code = _git("rev-parse", "HEAD") + _git("diff", "HEAD", *CHANGES[2:])
    return hashlib.sha256(code.encode()).hexdigest()


class Run:
    """Made at the start of a benchmark; `once` for each thing measured, `keep` at its end.

    A run that is cut off goes on where it was, if settings and code are the same.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = dict(settings)
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._load_before = load_average()
        same = json.dumps([self._settings, code_state()], default=str)
        short = hashlib.sha256(json.dumps(self._settings, default=str).encode()).hexdigest()[:8]
        self._unfinished = UNFINISHED / f"{name}-{short}.json"
        self._state: dict[str, Any] = {"of": same, "started": self._started, "measured": {}}
        if self._unfinished.exists() and not os.environ.get(FRESH):
            found = json.loads(self._unfinished.read_text())
            if found["of"] == same:
                self._state, self._started = found, found["started"]
                count = len(found["measured"])
                print(f"going on with a run that was cut off: {count} measurements are there")

    def once(self, what: str, measure: Callable[[], T]) -> T:
        """Measures, or gives what a run that was cut off had measured. JSON must be able to hold it."""
        measured: dict[str, Any] = self._state["measured"]
        if what not in measured:
            began_s = time.monotonic()
            measured[what] = measure()
            self._unfinished.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished.write_text(json.dumps(self._state))
            print(
                f"{self._name}: {what} measured in {time.monotonic() - began_s:.0f} s", flush=True
            )
        found: T = measured[what]
        return found

    def by_turns(
        self,
        cases: Sequence[C],
        repeats: int,
        name: Callable[[C], str],
        measure: Callable[[C], T],
    ) -> list[T]:
        """Every case so often, A-B-C-C-B-A, so that a slow minute of the machine meets all alike."""
        measured = []
        for turn in range(repeats):
            for case in cases if turn % 2 == 0 else reversed(cases):
                what = f"{name(case)}, {turn + 1} of {repeats}"
                measured.append(self.once(what, partial(measure, case)))
        return measured

    def forget(self) -> None:
        """What was measured is not to be gone on from."""
        self._unfinished.unlink(missing_ok=True)

    def keep(self, figures: Mapping[str, Any]) -> Path:
        """Writes `results/<name>.json`; the one before is in the history.

        If that one was measured with other settings it stays, unless `KEPT_IN` says so: this is a quick look then.
        """
        folder = Path(os.environ.get(KEPT_IN) or self._folder())
        model, flags = _cpu()
        memory_gib = psutil.virtual_memory().total / 2**30
        kept = {
            "benchmark": self._name,
            "commit": _git("rev-parse", "HEAD"),
            "changed_since_commit": bool(_git(*CHANGES)),
            "started": self._started,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "cores": os.cpu_count(),
                "cpu": model,
                "flags": flags,
                "memory_gib": round(memory_gib, 1),
                "system": f"{platform.system()} {platform.release()}",
                "python": platform.python_version(),
                **speed(),
                "load_average_before": self._load_before,
                "load_average_after": load_average(),
            },
            "versions": {
                **{package: _version(package) for package in PACKAGES},
                "kafka": KAFKA_VERSION,
                "python_optimised": "--enable-optimizations"
                in str(sysconfig.get_config_var("CONFIG_ARGS")),
            },
            "settings": self._settings,
            "figures": dict(figures),
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._name}.json"
        path.write_text(json.dumps(kept, indent=1) + "\n")
        self.forget()
        print(f"kept in {folder.name}/{path.name}")
        return path

    def _folder(self) -> Path:
        try:
            kept = json.loads((RESULTS / f"{self._name}.json").read_text())["settings"]
        except FileNotFoundError:
            return RESULTS
        same = json.loads(json.dumps(self._settings, default=str)) == kept
        return RESULTS if same else QUICK_RESULTS


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the least value that so large a share of all is not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, and in brackets the lowest and the highest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
