"""Servers to compare with, each a process of its own: the plain service, and LiteLLM's proxy before it."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from benchmarks.plain_service import MODEL
from benchmarks.stack import HOST, cpu_seconds_of
from inferlog.local_ports import any_free

ROOT = Path(__file__).parents[1]
LITELLM = "bench-litellm"
START_SECONDS = 180.0
STOP_SECONDS = 15.0


class Server:
    """Used as a context manager: answers inside, ended outside."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        health: str,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.port = port
        self._command = command
        self._health = f"http://{HOST}:{port}{health}"
        self._output = folder / f"server-{port}.txt"
        self._environ = environ
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._output.open("wb") as out:
            self._child = subprocess.Popen(
                self._command, stdout=out, stderr=out, env=self._environ, cwd=self._cwd
            )
        until_s = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > until_s:
                self._end()
                raise SystemExit(f"{self._command[0]} did not become ready:\n{self.said()}")
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def said(self) -> str:
        """What it printed."""
        return self._output.read_text(errors="replace")

    def cpu_seconds(self) -> float:
        """User and system time so far, its children's with it."""
        assert self._child is not None
        head = psutil.Process(self._child.pid)
        return sum(map(cpu_seconds_of, (head, *head.children(recursive=True))))

    def _answers(self) -> bool:
        try:
            return httpx.get(self._health, trust_env=False, timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def _end(self) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def plain_service(folder: Path, *options: str) -> Server:
    """`benchmarks.plain_service` with these options of the engine."""
    port = any_free(HOST, 1)
    command = [sys.executable, "-m", "benchmarks.plain_service", str(port)]
    command += [word for option in options for word in ("--engine-option", option)]
    return Server(command, port, "/health", folder)


LITELLM_ENVIRON = {
    "LITELLM_LOG": "ERROR",  # no line per request
    "LITELLM_MODE": "PRODUCTION",  # no .env file
    # fetches nothing: the tables that came with it will do
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
}


def litellm_config(upstream_port: int, key: str) -> dict[str, Any]:
    """What LiteLLM's page on production advises, as far as it is no database, cache or alert.

    Its Rust core is not asked for: it translates for other providers than `openai/`.
    """
    upstream = {"api_base": f"http://{HOST}:{upstream_port}/v1", "api_key": "unused"}
    return {
        "model_list": [
            {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", **upstream}}
        ],
        "general_settings": {
            "master_key": key,
            "disable_spend_logs": True,
            "disable_error_logs": True,
        },
        "litellm_settings": {"set_verbose": False, "request_timeout": 600},
    }


class LitellmProxy(Server):
    """One worker, as its documentation advises. Its environment is made at the first call."""

    def __init__(self, folder: Path, upstream_port: int) -> None:
        script = ROOT / "requirements" / "bench_environment.sh"
        if subprocess.run(["bash", str(script), LITELLM, sys.executable], check=False).returncode:
            raise SystemExit("LiteLLM could not be installed: the lines above say why")
        self.key = f"sk-{secrets.token_hex(16)}"
        config = folder / "litellm.yaml"
        config.write_text(json.dumps(litellm_config(upstream_port, self.key)))  # JSON is YAML
        commands = ROOT / "build" / LITELLM / "bin"
        port = any_free(HOST, 1)
        command = [str(commands / "litellm"), "--config", str(config), "--host", HOST]
        command += ["--port", str(port), "--num_workers", "1"]
        # nothing of this process's: neither its settings nor its secrets are the proxy's business
        environ = {"PATH": f"{commands}{os.pathsep}{os.defpath}", "HOME": str(folder)}
        environ |= LITELLM_ENVIRON
        super().__init__(command, port, "/health/readiness", folder, environ, folder)


def litellm_version() -> str:
    """Of the pinned set."""
    lines = (ROOT / "requirements" / f"{LITELLM}.txt").read_text().splitlines()
    return next(it for it in lines if it.startswith("litellm==")).split()[0].partition("==")[2]
