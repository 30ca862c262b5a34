"""Schemas meet the real compilers in a process of their own, which hostile ones cannot keep busy."""

import asyncio
import json
import os
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from consumers.inference.engine.schema_checks import KNOWN_MAX, SchemaChecks
from core.errors import Refusal

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

BOTH = ("xgrammar", "guidance")
GOOD = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
# half a minute of xgrammar's time
SLOW = {
    "type": "array",
    "items": {"type": "string", "pattern": "([a-z]{1,60}-){1,60}"},
    "minItems": 500,
    "maxItems": 5000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def checks(vllm_model_dir: Path) -> AsyncIterator[SchemaChecks]:
    """With the vocabulary of the small model; no engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer  # noqa: PLC0415  seconds, and only where it is there

        tokenizer: Any = AutoTokenizer.from_pretrained(str(vllm_model_dir))

    async def opening() -> dict[str, Any]:
        return {
            "tokenizer": tokenizer._tokenizer.to_str(),
            "vocab_size": len(tokenizer),
            "stop_token_ids": [tokenizer.eos_token_id],
        }

    made = SchemaChecks(2.0, opening)
    yield made
    await made.stop()


async def refusal(checks: SchemaChecks, schema: Any, names: tuple[str, ...] = BOTH) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await checks.check(schema, names)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "response_format")
    return caught.value


@pytest.mark.parametrize(
    "schema",
    [
        GOOD,
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "(((a|b|c)*)*)*d"},
        {"type": "string", "pattern": "((x{1,50}){1,50}){1,50}"},
        {"type": "string", "pattern": "foo**"},
        {"$ref": "#"},
    ],
    ids=json.dumps,
)
async def test_what_compiles_in_time_may_pass(checks: SchemaChecks, schema: Any) -> None:
    await checks.check(schema, BOTH)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"type": 5},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": 5},
        {"$ref": "#/nowhere"},
    ],
    ids=json.dumps,
)
async def test_what_is_malformed_is_refused_with_its_reason(
    checks: SchemaChecks, schema: Any
) -> None:
    error = await refusal(checks, schema)
    assert "cannot be compiled: " in error.message
    assert "/project/" not in error.message


async def test_what_only_the_second_compiler_takes_may_pass(checks: SchemaChecks) -> None:
    await checks.check({"type": "integer", "multipleOf": 3}, ("guidance",))
    assert "no compiler knows" in (await refusal(checks, {"patternProperties": {}}, ())).message


async def test_a_slow_schema_is_cut_off_while_the_loop_runs_on_and_the_next_is_quick(
    checks: SchemaChecks,
) -> None:
    await checks.check(GOOD, BOTH)
    program = checks._process
    assert program is not None
    laps: list[float] = []

    async def lap() -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.01)
            laps.append(time.monotonic() - began_s)

    lapping = asyncio.create_task(lap())
    began_s = time.monotonic()
    error = await refusal(checks, SLOW)
    took_s = time.monotonic() - began_s
    lapping.cancel()
    assert "takes longer than 2 s to compile" in error.message
    assert 2.0 <= took_s < 12.0
    assert len(laps) > 20
    # nothing of it runs on, and the program was not lost with it
    assert psutil.Process(program.pid).children() == []
    await checks.check({"type": "boolean"}, BOTH)
    assert checks._process is program


async def test_a_run_that_is_cancelled_leaves_its_answer_to_nobody(checks: SchemaChecks) -> None:
    await checks.check(GOOD, BOTH)
    leaving = asyncio.create_task(checks.check(SLOW, BOTH))
    await asyncio.sleep(0.2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await checks.check({"type": "null"}, BOTH)
    await refusal(checks, {"type": "no such type"})


async def test_a_program_that_died_is_started_anew(checks: SchemaChecks) -> None:
    await checks.check(GOOD, BOTH)
    assert checks._process is not None
    os.kill(checks._process.pid, 9)
    await checks._process.wait()
    await checks.check({"const": "after its death"}, BOTH)


async def test_known_schemas_are_not_asked_again_and_are_bounded(checks: SchemaChecks) -> None:
    await checks.check(GOOD, BOTH)
    asked = checks._asking
    await checks.check(dict(GOOD), BOTH)
    assert checks._asking is asked
    for index in range(KNOWN_MAX - len(checks._known)):
        checks._known[str(index).encode()] = None
    await checks.check({"const": "one more"}, BOTH)
    assert len(checks._known) == KNOWN_MAX
