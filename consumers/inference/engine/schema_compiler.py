"""A program of its own: compiles JSON schemas as vLLM would, each in a child that can be killed.

Compiling a schema is native code that cannot be interrupted, and a schema of a hundred bytes can
keep it busy for minutes or fill memory. So it is tried here first, within a limit, before an engine
that serves others is given the schema.

Input, a JSON object per line: first `{"tokenizer", "vocab_size", "stop_token_ids"}`, then per schema
`{"schema", "compilers", "seconds"}`. Output: a line `{}` when it is ready, then per schema
`{"verdict", "detail"}`, the verdict one of `ok`, `refused`, `too_slow`, `crashed`. Ends with its
input, so also with whoever started it.
"""

import json
import os
import re
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES_MAX = 2 * 1024**3
"""What one compilation may take."""

THREADS = 4
DETAIL_BYTES_MAX = 400
_PLACE_IN_SOURCE = re.compile(r"^\[[\d:]+\] \S+: ")


class SchemaRefused(ValueError):
    """No compiler takes the schema; the message says why."""


class Compilers:
    """xgrammar and llguidance, with the model's vocabulary."""

    def __init__(self, tokenizer: str, vocab_size: int, stop_token_ids: list[int]) -> None:
        import llguidance  # noqa: PLC0415  seconds, and not wanted where this module is only read
        import xgrammar  # noqa: PLC0415
        from tokenizers import Tokenizer  # noqa: PLC0415
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

        fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer))
        self._xgrammar: Any = xgrammar
        self._guidance: Any = llguidance.LLMatcher
        self._vocabulary = xgrammar.TokenizerInfo.from_huggingface(
            fast, vocab_size=vocab_size, stop_token_ids=stop_token_ids
        )

    def compile(self, schema: str, names: list[str]) -> None:
        """Tries them in this order, as vLLM does: the first that can read the schema has it.

        Raises SchemaRefused.
        """
        why = "no compiler knows what it asks for"
        for name in names:
            try:
                if name == "xgrammar":
                    self._by_xgrammar(schema)
                else:
                    self._by_guidance(schema)
            except SchemaRefused as error:
                why = str(error)
            else:
                return
        raise SchemaRefused(why)

    def _by_xgrammar(self, schema: str) -> None:
        try:
            self._xgrammar.Grammar.from_json_schema(schema)
        except Exception as error:
            raise SchemaRefused(str(error)) from error
        compiler = self._xgrammar.GrammarCompiler(
            self._vocabulary, max_threads=THREADS, cache_enabled=False
        )
        # vLLM would not look for another compiler any more: what fails here ends the trial
        compiler.compile_json_schema(schema)

    def _by_guidance(self, schema: str) -> None:
        try:
            grammar = self._guidance.grammar_from_json_schema(schema)
        except Exception as error:
            raise SchemaRefused(str(error)) from error
        if why := self._guidance.validate_grammar(grammar, None):
            raise SchemaRefused(why)


def judge(compilers: Compilers, schema: str, names: list[str], seconds: float) -> dict[str, str]:
    """The verdict on one schema, after at most these seconds."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _compile_and_exit(compilers, schema, names, writing)
    os.close(writing)
    try:
        in_time = bool(select.select([reading], [], [], seconds)[0])
        said = os.read(reading, 4096) if in_time else b""
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not in_time:
        return {"verdict": "too_slow", "detail": ""}
    if not said:
        return {"verdict": "crashed", "detail": ""}
    detail = said[1:].decode(errors="replace")
    return {"verdict": "ok" if said[:1] == b"+" else "refused", "detail": detail}


def _compile_and_exit(
    compilers: Compilers, schema: str, names: list[str], writing: int
) -> None:  # pragma: no cover (in a forked child)
    try:
        _bound_memory()
        compilers.compile(schema, names)
        said = b"+"
    except MemoryError:
        said = b""
    except Exception as error:  # noqa: BLE001  whatever a compiler raises is its refusal
        why = _PLACE_IN_SOURCE.sub("", str(error)).strip()
        said = b"-" + why.encode(errors="replace")[:DETAIL_BYTES_MAX]
    os.write(writing, said)
    os._exit(0)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Serves standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    lines = sys.stdin.buffer
    compilers = Compilers(**json.loads(lines.readline()))
    answers.write("{}\n")
    answers.flush()
    for line in lines:
        asked = json.loads(line)
        verdict = judge(compilers, asked["schema"], asked["compilers"], asked["seconds"])
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
