"""vLLM's own OpenAI server, with the environment and the engine arguments that Inferlog gives vLLM.

python -m benchmarks.vllm_server --port 8001    # becomes the server; VLLM_API_KEY is its key
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.stack import HOST, cpu_seconds_of
from consumers.inference.engine.vllm_settings import default_arguments, prepare_environment
from inferlog.local_ports import any_free
from inferlog.model_download import MODEL_NAME, make_model

START_SECONDS = 300.0
STOP_SECONDS = 30.0


def option_words(arguments: Mapping[str, Any]) -> list[str]:
    """From arguments by name to words of vLLM's command line."""
    words: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words


class VllmServer:
    """Used as a context manager: ready inside, ended outside."""

    def __init__(self, folder: Path, key: str) -> None:
        self.port = any_free(HOST, 1)
        self._output = folder / "vllm.txt"
        command = [sys.executable, "-m", "benchmarks.vllm_server", "--port", str(self.port)]
        with self._output.open("wb") as out:
            # a group of its own: the terminal's Ctrl-C is for the benchmark, which then ends it
            self._head = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                env={**os.environ, "VLLM_API_KEY": key},
                process_group=0,
            )

    def __enter__(self) -> Self:
        try:
            self._wait_for_health()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def _wait_for_health(self) -> None:
        until_s = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._head.poll() is not None or time.monotonic() > until_s:
                said = self._output.read_text(errors="replace")[-3000:]
                raise SystemExit(f"vLLM's server did not become ready:\n{said}")
            time.sleep(0.25)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _end(self) -> None:
        if self._head.poll() is None:
            self._head.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._head.wait(STOP_SECONDS)
        # whatever of its group is left
        with suppress(ProcessLookupError):
            os.killpg(self._head.pid, signal.SIGKILL)
        self._head.wait()

    def command(self) -> list[str]:
        """What it was started with, as another machine would say it."""
        words = psutil.Process(self._head.pid).cmdline()[1:]
        return ["python", *(MODEL_NAME if word == str(make_model()) else word for word in words)]

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time so far: of the process that speaks HTTP, and of the model's."""
        head = psutil.Process(self._head.pid)
        engine = sum(map(cpu_seconds_of, head.children(recursive=True)))
        return {"server": cpu_seconds_of(head), "engine": engine}


def main() -> None:
    """Becomes the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    words = parser.parse_args()
    model = str(make_model())
    prepare_environment(model, ())
    arguments = default_arguments({}) | {
        "model": model,
        "served_model_name": MODEL_NAME,
        "host": HOST,
        "port": words.port,
        # Inferlog writes no line for each request either
        "disable_uvicorn_access_log": True,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    os.execv(sys.executable, [*command, *option_words(arguments)])  # noqa: S606 no shell is wanted


if __name__ == "__main__":
    main()
