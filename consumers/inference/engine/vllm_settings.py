"""From `KEY=VALUE` options to a vLLM engine: vLLM's own argument names, and our defaults.

Nothing here imports vLLM before the environment is set, for vLLM and its libraries read parts of it
while they are imported.
"""

import logging
import os
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from consumers.inference.engine.options import EngineOptionError, parse_options
from consumers.inference.engine.vllm_arguments import PROCESSOR
from core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from consumers.inference.engine.vllm import VllmEngine

log = logging.getLogger(__name__)

CPU_SLOTS = 32
"""Sequences at once on a CPU, where vLLM's own default is for a GPU's batches."""

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16"))


def make_vllm_engine(
    model: str, options: Sequence[str], limits: Limits = DEFAULT_LIMITS
) -> "VllmEngine":
    """An engine for a local folder, or a model's name. Imports vLLM: seconds. Not started yet.

    Raises EngineOptionError.
    """
    prepare_environment(model, options)
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 after the environment

    from consumers.inference.engine.vllm import VllmEngine  # noqa: PLC0415

    found = parse_options(options, _argument_types(AsyncEngineArgs))
    for taken in ("model", "enable_log_requests"):
        if taken in found:
            raise EngineOptionError(f"engine option {taken!r} is not yours to set here")
    defaults = default_arguments(found)
    arguments = {"model": model, **defaults, **found}
    arguments["logits_processors"] = _processors(found)
    name = arguments.get("served_model_name") or Path(model).name
    try:
        return VllmEngine(AsyncEngineArgs(**arguments), _first(name), limits)
    except (ValueError, TypeError) as error:
        raise EngineOptionError(f"vLLM refuses these engine options: {error}") from error


def default_arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Our defaults where vLLM's own differ, for this machine; `found` is what the operator set.

    To be called behind `prepare_environment`, for it imports vLLM.
    """
    from vllm.platforms import current_platform  # noqa: PLC0415 after the environment

    defaults: dict[str, Any] = {
        # recovery gives a run's prompt and tokens back; cached blocks make that cheap
        "enable_prefix_caching": True,
        # one more process-wide Prometheus registry that nobody reads
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        dtype, flags = cpu_dtype(Path("/proc/cpuinfo"))
        defaults |= {"dtype": dtype, "enforce_eager": True, "max_num_seqs": CPU_SLOTS}
        if found.get("enforce_eager", True):
            # a sampling option's first use would stop every stream while it is compiled: 3 to 20 s
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        log.info("vllm on a CPU: dtype %s (flags: %s)", found.get("dtype", dtype), flags)
    return defaults


def _processors(found: dict[str, Any]) -> list[Any] | None:
    """The operator's logits processors and ours, without which some resumed runs are refused."""
    given = found.get("logits_processors")
    if found.get("speculative_config") is not None:
        if given:
            raise EngineOptionError(
                "engine options 'speculative_config' and 'logits_processors' exclude each other"
            )
        why = "speculative decoding checks several tokens at once"
    elif os.environ.get(_RUNNER) != "0":
        why = f"{_RUNNER} is not 0"
    else:
        return [*(given or ()), PROCESSOR]
    log.warning("%s: an answer with penalties or guided decoding is not resumed", why)
    return given


def cpu_dtype(cpuinfo: Path) -> tuple[str, str]:
    """The dtype for this CPU, and the flags that decided it.

    Without bf16 instructions bfloat16 is emulated, at a quarter of float32's speed.
    """
    try:
        found = _BF16_FLAGS.intersection(cpuinfo.read_text().split())
    except OSError:
        return "float32", "unknown"
    return ("bfloat16", ", ".join(sorted(found))) if found else ("float32", "no bf16")


def prepare_environment(model: str, options: Sequence[str]) -> None:
    """Settings that vLLM takes from nowhere else; what the operator set stays."""
    if Path(model).is_dir():
        # a local folder is complete; a look at the network would only delay or fail the start
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # GiB; without it vLLM asks for nearly all of a memory node, and refuses to start. But it wins
    # over the option for the same, which then would do nothing.
    if not any(option.startswith("kv_cache_memory_bytes=") for option in options):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # a fork would copy this process's threads, sockets and event loop into the engine
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # of vLLM's two model runners, the one whose logits processors resumed runs are written for
    os.environ.setdefault(_RUNNER, "0")


def _argument_types(arguments: type) -> dict[str, Any]:
    """Field by field: one annotation that only type checkers can resolve must not hide the rest."""
    module = vars(sys.modules[arguments.__module__])
    known: dict[str, Any] = {}
    for field in fields(arguments):
        if not field.init or field.name.startswith("_"):
            continue
        alone = types.SimpleNamespace(__annotations__={field.name: field.type})
        try:
            known[field.name] = get_type_hints(alone, globalns=module)[field.name]
        except NameError:
            known[field.name] = Any
    return known


def _first(name: str | list[str]) -> str:
    return name if isinstance(name, str) else name[0]
