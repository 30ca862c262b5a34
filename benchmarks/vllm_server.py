"""vLLM's own OpenAI server, with the environment and the engine arguments that Inferlog gives vLLM.

python -m benchmarks.vllm_server --port 8001    # becomes the server; VLLM_API_KEY is its key
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.server import Server
from benchmarks.stack import HOST
from consumers.inference.engine.vllm_settings import default_arguments, prepare_environment
from inferlog.local_ports import any_free
from inferlog.model_download import MODEL_NAME, make_model


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


class VllmServer(Server):
    """With a key of the benchmark's own."""

    END_BY = signal.SIGINT

    def __init__(self, folder: Path, key: str) -> None:
        port = any_free(HOST, 1)
        command = [sys.executable, "-m", "benchmarks.vllm_server", "--port", str(port)]
        super().__init__(command, port, "/health", folder, {**os.environ, "VLLM_API_KEY": key})

    def command(self) -> list[str]:
        """What it was started with, as another machine would say it."""
        words = psutil.Process(self._child.pid).cmdline()[1:]
        return ["python", *(MODEL_NAME if word == str(make_model()) else word for word in words)]

    def cpu_seconds_by_part(self) -> dict[str, float]:
        """User and system time so far: of the process that speaks HTTP, and of the model's."""
        server, engine = self.cpu_seconds_by_process()
        return {"server": server, "engine": engine}


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
