"""Whether a JSON schema can be compiled within its time, asked before an engine is given it.

The work is done by `schema_compiler`, a program that is started with the first schema and kept: its
start takes seconds, a schema milliseconds. One schema at a time is tried; the others wait, each for
no longer than its own run does.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from core.errors import Refusal

KNOWN_MAX = 512
"""Schemas that are remembered as good."""

START_SECONDS = 60.0
ANSWER_MARGIN_SECONDS = 10.0
"""Beyond a schema's own time; then the program itself is stuck, and started anew."""

_log = logging.getLogger(__name__)

MakeOpening = Callable[[], Awaitable[dict[str, Any]]]
"""The vocabulary, as `schema_compiler` wants it in its first line."""


class CompilerGone(Exception):
    """The program ended, or does not answer."""


class SchemaChecks:
    """`check` as often as needed, `stop` at the end. One event loop."""

    def __init__(self, compile_seconds: float, make_opening: MakeOpening) -> None:
        self._compile_seconds = compile_seconds
        self._make_opening = make_opening
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self._asking: asyncio.Task[dict[str, str]] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def check(self, schema: Any, compilers: Sequence[str]) -> None:
        """Returns for a schema that one of the compilers takes in time. Raises Refusal otherwise.

        `compilers`: names that `schema_compiler` knows, in the order in which the engine tries them.
        """
        text = json.dumps(schema)
        key = hashlib.sha256(text.encode()).digest()
        if self._is_known(key):
            return
        await self._turn.acquire()
        if self._is_known(key):
            self._turn.release()
            return
        # The turn ends with the answer, not with the run: a run that is cancelled meanwhile must not
        # leave its answer to the next one.
        asking = self._asking = asyncio.create_task(self._ask(text, compilers))
        asking.add_done_callback(self._answered)
        try:
            said = await asyncio.shield(asking)
        except CompilerGone as error:
            _log.error("schemas cannot be checked: %s", error)
            message = "The engine could not check the schema of this request."
            raise Refusal("engine_failed", message) from None
        if said["verdict"] != "ok":
            raise self._refusal(said)
        self._known[key] = None
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _answered(self, asking: "asyncio.Task[dict[str, str]]") -> None:
        self._turn.release()
        if not asking.cancelled():
            asking.exception()  # nobody may be there any more to hear of it

    def _is_known(self, key: bytes) -> bool:
        if key not in self._known:
            return False
        self._known.move_to_end(key)
        return True

    def _refusal(self, said: dict[str, str]) -> Refusal:
        why = {
            "too_slow": f"takes longer than {self._compile_seconds:g} s to compile",
            "crashed": "takes too much memory, or brings its compiler down",
        }.get(said["verdict"], f"cannot be compiled: {said['detail']}")
        message = f"The schema of 'response_format' {why}. Make it simpler."
        return Refusal("invalid_request", message, param="response_format")

    async def _ask(self, text: str, compilers: Sequence[str]) -> dict[str, str]:
        seconds = self._compile_seconds
        asked = {"schema": text, "compilers": list(compilers), "seconds": seconds}
        try:
            async with asyncio.timeout(START_SECONDS):
                process = await self._running()
            async with asyncio.timeout(seconds + ANSWER_MARGIN_SECONDS):
                return await _exchange(process, asked)
        except (OSError, ValueError, TimeoutError) as error:
            await self._end()
            raise CompilerGone(f"{type(error).__name__} {error}") from error

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        opening = await self._make_opening()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "consumers.inference.engine.schema_compiler"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # compilers print what a schema says
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        await _exchange(self._process, opening)
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def stop(self) -> None:
        """Ends the program. Idempotent."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._end()


async def _exchange(process: asyncio.subprocess.Process, value: dict[str, Any]) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(value).encode() + b"\n")
    await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        raise OSError(f"it ended with exit code {await process.wait()}")
    answer: dict[str, str] = json.loads(line)
    return answer
