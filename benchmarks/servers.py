"""Servers to compare with, each a process of its own: the plain service, and LiteLLM's proxy before it."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.plain_service import MODEL
from benchmarks.server import Server
from benchmarks.stack import HOST, engine_words
from inferlog.local_ports import any_free

ROOT = Path(__file__).parents[1]
LITELLM = "bench-litellm"


def plain_service(folder: Path, *options: str) -> Server:
    """`benchmarks.plain_service` with these options of the engine."""
    port = any_free(HOST, 1)
    command = [sys.executable, "-m", "benchmarks.plain_service", str(port)]
    return Server([*command, *engine_words(*options)], port, "/health", folder)


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
