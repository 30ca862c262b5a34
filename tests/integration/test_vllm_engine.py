"""vLLM with a real model: what the contract suite cannot ask of every engine."""

import asyncio
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumers.inference.engine.options import EngineOptionError, make_engine
from consumers.inference.engine.ports import EngineDied, Logged, Run
from consumers.inference.engine.vllm_settings import cpu_dtype
from schemas.requests import CHAT, COMPLETIONS, Body, Message, ResponseFormat
from tests.engine_recorder import Answer, EngineRecorder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

PROMPT = "The capital of France is"
END_TOKEN = 2
"""The small model's <|im_end|>."""
TEXT = "Grüße, 世界! 🎉👩‍🚀 naïve fin"


@pytest.fixture(scope="session")
def tokenizer(vllm_model_dir: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer  # noqa: PLC0415

        return AutoTokenizer.from_pretrained(str(vllm_model_dir))


def body(**fields: Any) -> Body:
    given = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0.0, **fields}
    return Body(**given)


def error_of(answer: Answer) -> str:
    assert answer.ended is not None
    assert answer.ended.error is not None
    assert PROMPT not in answer.ended.error.message
    return answer.ended.error.code


def spoken(tokenizer: Any, ids: list[int], stops: tuple[str, ...], cut: int) -> str:
    """The visible text of `ids`, with a seam after `cut` of them."""
    from consumers.inference.engine.vllm_choice import Choice  # noqa: PLC0415

    asked = body(stop=stops)
    first = Choice(1, 0, tokenizer, [END_TOKEN], asked)
    shown = "".join([first.advance([token_id], None, None).text for token_id in ids[:cut]])
    if first.ended:
        return shown
    second = Choice(1, 0, tokenizer, [END_TOKEN], asked)
    second.prime(Logged(tuple(ids[:cut]), shown), ended_by_token=False, max_tokens=len(ids) + 1)
    for token_id in ids[cut:]:
        if second.ended is None:
            shown += second.advance([token_id], None, None).text
    return shown + second.pending_text


def test_a_character_across_the_seam_is_shown_whole(tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT.split())
    assert any("\ufffd" in tokenizer.decode(ids[:cut]) for cut in range(len(ids)))
    for cut in range(1, len(ids) + 1):
        assert spoken(tokenizer, ids, (), cut) == TEXT, cut


def test_a_stop_string_across_the_seam_and_a_character_is_hidden(tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    for stop in ("世界!", "🎉", "ïve f"):
        for cut in range(1, len(ids) + 1):
            assert spoken(tokenizer, ids, (stop,), cut) == TEXT[: TEXT.index(stop)], (stop, cut)


def test_tokens_behind_a_stop_string_in_one_chunk_are_dropped(tokenizer: Any) -> None:
    from consumers.inference.engine.vllm_choice import Choice  # noqa: PLC0415

    ids = tokenizer("one two three four")["input_ids"]
    output = Choice(1, 0, tokenizer, [END_TOKEN], body(stop=("two",))).advance(ids, None, None)
    assert output.text == "one "
    assert output.finish_reason == "stop"
    assert tokenizer.decode(list(output.token_ids)) == "one two"


def test_without_max_tokens_an_answer_takes_what_the_context_leaves(tokenizer: Any) -> None:
    from consumers.inference.engine.vllm_requests import Preparer  # noqa: PLC0415

    run = Run(1, "id", "m", COMPLETIONS, body(max_tokens=None))
    prompt_tokens = len(tokenizer(PROMPT)["input_ids"])

    def given(context_tokens: int, default: int) -> int:
        preparer = Preparer(tokenizer, "m", context_tokens, default, [END_TOKEN])
        return preparer.prepare(run).max_tokens

    assert given(8192, 1024) == 1024
    assert given(8192, 77) == 77
    assert given(100, 1024) == 100 - prompt_tokens


def test_the_dtype_follows_the_flags_of_the_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2 avx512f\n")
    assert cpu_dtype(cpuinfo) == ("float32", "no bf16")
    cpuinfo.write_text("flags : fpu avx2 avx512_bf16\n")
    assert cpu_dtype(cpuinfo) == ("bfloat16", "avx512_bf16")
    assert cpu_dtype(tmp_path / "missing") == ("float32", "unknown")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("max_num_seq=4", "max_num_seqs"),
        ("max_num_seqs=few", "whole number"),
        ("enforce_eager=maybe", "true or false"),
        ("dtype=float3", "one of auto"),
        ("model=other", "not yours"),
    ],
)
def test_a_bad_option_is_named(vllm_recorder: EngineRecorder, option: str, said: str) -> None:
    with pytest.raises(EngineOptionError, match=said):
        make_engine("vllm", "some-model", [option])


async def test_the_model_is_known_by_its_folder(
    vllm_recorder: EngineRecorder, vllm_model_dir: Path
) -> None:
    model = vllm_recorder.engine.models[0]
    assert (model.name, model.context_tokens) == (vllm_model_dir.name, 2048)
    assert vllm_recorder.engine.slots == 4


async def test_the_end_token_ends_the_answer_and_has_no_text(vllm_recorder: EngineRecorder) -> None:
    answer = await vllm_recorder.run(body(logit_bias={str(END_TOKEN): 100.0}))
    assert answer.ids() == (END_TOKEN,)
    assert answer.text() == ""
    assert answer.reason() == "stop"


async def test_a_logged_end_token_is_not_continued(vllm_recorder: EngineRecorder) -> None:
    first = await vllm_recorder.run(body())
    logged = Logged((*first.ids()[:3], END_TOKEN), "")
    answer = await vllm_recorder.run(body(), (logged,))
    assert answer.ids() == ()
    assert answer.reason() == "stop"
    three = await vllm_recorder.run(body(max_tokens=3))
    assert answer.text() == three.text()


async def test_a_seed_repeats_and_each_choice_has_its_own(vllm_recorder: EngineRecorder) -> None:
    asked = body(temperature=1.5, seed=7, n=2, max_tokens=12)
    first, second = await vllm_recorder.run(asked), await vllm_recorder.run(asked)
    assert first.ids(0) == second.ids(0)
    assert first.ids(1) == second.ids(1)
    assert first.ids(0) != first.ids(1)


# half a minute of its compiler's time
SLOW_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "pattern": "([a-z]{1,60}-){1,60}"},
    "minItems": 500,
    "maxItems": 5000,
}


async def test_a_schema_is_followed(vllm_recorder: EngineRecorder) -> None:
    schema = {"enum": ["red", "blue"]}
    answer = await vllm_recorder.run(
        body(response_format=ResponseFormat(type="json_schema", schema=schema))
    )
    assert json.loads(answer.text()) in ("red", "blue")
    assert answer.reason() == "stop"


async def test_any_json_object_is_one(vllm_recorder: EngineRecorder) -> None:
    answer = await vllm_recorder.run(
        body(response_format=ResponseFormat(type="json_object"), max_tokens=4)
    )
    assert answer.text().startswith("{")


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"999999": 1.0}},
        {"logit_bias": {"word": 1.0}},
        {"logprobs": 10_000},
        {"response_format": ResponseFormat(type="json_schema", schema={"type": "no such type"})},
        {"response_format": ResponseFormat(type="json_schema", schema=SLOW_SCHEMA)},
    ],
)
async def test_what_vllm_refuses_is_an_invalid_request(
    vllm_recorder: EngineRecorder, fields: dict[str, Any]
) -> None:
    answer = await vllm_recorder.run(body(**fields))
    assert error_of(answer) == "invalid_request"
    assert answer.outputs == []


async def test_penalties_and_top_p_are_taken(vllm_recorder: EngineRecorder) -> None:
    plain = await vllm_recorder.run(body(max_tokens=24))
    other = await vllm_recorder.run(body(max_tokens=24, frequency_penalty=2.0, top_p=0.9))
    assert plain.ids() != other.ids()


async def test_a_chat_is_answered_in_text(vllm_recorder: EngineRecorder) -> None:
    messages = (Message(role="user", content="Say hello."),)
    answer = await vllm_recorder.run(
        body(prompt=None, messages=messages, max_tokens=16), endpoint=CHAT
    )
    assert "hello" in answer.text().lower()
    assert "<|im" not in answer.text()


async def test_a_repeated_prompt_comes_from_the_cache_of_its_tenant(
    vllm_recorder: EngineRecorder,
) -> None:
    long = body(prompt=" ".join(f"item {i}," for i in range(40)), max_tokens=1)
    cached = []
    for salt in ("tenant-1", "tenant-1", "tenant-2"):
        answer = await vllm_recorder.run(long, cache_salt=salt)
        assert answer.ended is not None
        cached.append(answer.ended.cached_tokens)
    assert cached[0] == 0
    assert cached[1] > 0
    assert cached[2] == 0


async def test_an_abort_leaves_nothing_in_vllm(vllm_recorder: EngineRecorder) -> None:
    runs = [vllm_recorder.submit(body(max_tokens=200, n=2)) for _ in range(2)]
    await vllm_recorder.until(lambda: all(vllm_recorder.answers[r].outputs for r in runs))
    for run_id in runs:
        vllm_recorder.engine.abort(run_id)
    await asyncio.sleep(0.2)
    llm = vllm_recorder.engine._process._llm  # type: ignore[attr-defined]
    assert llm.output_processor.get_num_unfinished_requests() == 0


async def test_a_folder_without_a_model_fails_with_a_reason(
    vllm_recorder: EngineRecorder, tmp_path: Path
) -> None:
    engine = make_engine("vllm", str(tmp_path), [])
    with pytest.raises(EngineDied, match="did not start"):
        await engine.start(print, print)
    await engine.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_killed_engine_process_is_told_once_and_leaves_no_process(
    vllm_recorder: EngineRecorder, vllm_model_dir: Path
) -> None:
    before = set(psutil.Process().children(recursive=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = make_engine("vllm", str(vllm_model_dir), ["dtype=float32", "max_model_len=512"])
        recorder = await EngineRecorder(engine).start()
        started = set(psutil.Process().children(recursive=True)) - before
        run_id = recorder.submit(body(max_tokens=400))
        await recorder.until(lambda: bool(recorder.answers[run_id].outputs))
        cores = [p for p in started if "EngineCore" in "".join(p.cmdline()) + p.name()]
        for process in cores or started:
            os.kill(process.pid, signal.SIGKILL)
        await recorder.until(lambda: bool(recorder.deaths))
        calls = len(recorder.calls)
        await asyncio.sleep(0.5)
        assert len(recorder.deaths) == 1
        assert len(recorder.calls) == calls
        await engine.stop()
        await engine.stop()
    left = [p for p in psutil.Process().children(recursive=True) if p in started]
    gone, alive = psutil.wait_procs(left, timeout=10)
    names = [p.cmdline() for p in alive if "resource_tracker" not in "".join(p.cmdline())]
    assert names == [], len(gone)
