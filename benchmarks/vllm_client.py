"""vLLM's own load client, `vllm bench serve`, in a process of its own that is kept for many measurements.

Its reader of event streams knows lines of `data:` and comments alone. Inferlog's events carry `id:` and
`retry:` as well, as the specification of event streams allows; such lines are taken out before the
client reads, of both servers' answers alike, and nothing else of the client is changed.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.stack import HOST, cpu_seconds_of
from benchmarks.vllm_figures import read_result

_FIELDS = re.compile(rb"^(?:id|retry): ?\d+\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`prompts` random prompts, no two alike, over `streams` streams; greedy answers of full length."""

    prompts: int
    streams: int
    input_tokens: int
    output_tokens: int


def without_fields(received: bytes) -> bytes:
    """What was received, without the lines that are neither data nor comment."""
    return _FIELDS.sub(b"", received)


def words_of(load: Load, *, port: int, model: Path, name: str, end_id: int, seed: int) -> list[str]:
    """The client's command line.

    Its `random` prompts would ask for `ignore_eos`, which OpenAI's API does not have; the same random
    prompts come from `prefix_repetition` with a prefix for each. No answer ends early all the same,
    as the token that would end it is never chosen. Named by its folder, the model is unknown to vLLM's
    /tokenize, by which the client would otherwise change the prompts for vLLM alone.
    """
    first, second = load.input_tokens // 2, load.input_tokens - load.input_tokens // 2
    said = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "host": HOST,
        "port": port,
        "model": model,
        "served-model-name": name,
        "dataset-name": "prefix_repetition",
        "prefix-repetition-prefix-len": first,
        "prefix-repetition-suffix-len": second,
        "prefix-repetition-num-prefixes": load.prompts,
        "prefix-repetition-output-len": load.output_tokens,
        "num-prompts": load.prompts,
        "max-concurrency": load.streams,
        "seed": seed,
        "temperature": 0,
        "extra-body": json.dumps({"logit_bias": {str(end_id): -100}}),
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "metric-percentiles": "50,95,99",
        "ready-check-timeout-sec": 0,
    }
    words = [word for key, value in said.items() for word in (f"--{key}", str(value))]
    return [*words, "--disable-tqdm", "--save-result", "--save-detailed"]


def end_id_of(model: Path) -> int:
    """The token that ends an answer. Raises SystemExit where there are several."""
    found = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    if not isinstance(found, int):
        raise SystemExit(f"{model.name} has several tokens that end an answer: {found}")
    return found


class VllmClient:
    """The process. Used as a context manager; it takes seconds to import vLLM."""

    def __init__(self, folder: Path) -> None:
        self._result = folder / "result.json"
        self._said = folder / "client.txt"
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> Self:
        self._process = psutil.Process(self._pool.submit(_ready).result())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def cpu_seconds(self) -> float:
        """Of the client, so far."""
        return cpu_seconds_of(self._process)

    def measure(self, words: Sequence[str], key: str, tokens: int) -> dict[str, Any]:
        """Blocks until all is answered; the figures of `read_result`. Raises SystemExit."""
        kept = ("--result-dir", str(self._result.parent), "--result-filename", self._result.name)
        self._result.unlink(missing_ok=True)
        try:
            self._pool.submit(_measure, [*words, *kept], key, str(self._said)).result()
            result = json.loads(self._result.read_text())
        except Exception as error:
            tail = self._said.read_text()[-2000:] if self._said.exists() else ""
            raise SystemExit(f"vLLM's client gave up: {error!r}\n{tail}") from error
        return read_result(result, tokens)


# --- in the client's process


def _ready() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from vllm.benchmarks.lib import endpoint_request_func  # noqa: PLC0415 seconds, only here

    handler = endpoint_request_func.StreamedResponseHandler
    plain = handler.add_chunk

    def add_chunk(self: Any, received: bytes) -> Any:
        return plain(self, without_fields(received))

    handler.add_chunk = add_chunk
    return os.getpid()


def _measure(words: list[str], key: str, said: str) -> None:
    from vllm.benchmarks.serve import add_cli_args, main_async  # noqa: PLC0415 as above
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    # where the client looks for it
    os.environ["OPENAI_API_KEY"] = key
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with Path(said).open("w") as out, contextlib.redirect_stdout(out):
        asyncio.run(main_async(parser.parse_args(words)))
