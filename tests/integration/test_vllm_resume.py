"""vLLM with a real model: an answer that is cut off goes on as if it had not been."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from consumers.inference.engine.options import EngineOptionError, make_engine
from consumers.inference.engine.ports import FEATURES, Logged, Run
from core.errors import Refusal
from schemas.replies import TokenLogprob
from schemas.requests import COMPLETIONS, Body, ResponseFormat
from tests.engine_recorder import Answer, EngineRecorder
from tests.failover_rows import DRAWN, EXACT, FACTS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]


def logged(answer: Answer, choice: int, cut: int) -> Logged:
    """What the log holds of the first `cut` tokens of a choice, and of the text shown with them."""
    ids: tuple[int, ...] = ()
    text = ""
    for out in answer.outputs:
        if out.choice == choice and len(ids) + len(out.token_ids) <= cut:
            ids += out.token_ids
            text += out.text
    assert len(ids) == cut, "a step gave more than one token"
    if cut == len(answer.ids(choice)):
        return Logged(ids, text, answer.reason(choice))
    return Logged(ids, text)


def logprobs_of(answer: Answer, choice: int) -> list[TokenLogprob]:
    outs = [out for out in answer.outputs if out.choice == choice]
    return [found for out in outs for found in out.logprobs or ()]


def assert_joined(asked: Body, whole: Answer, start: tuple[Logged, ...], rest: Answer) -> None:
    """The two parts together are the whole, in all that a client or a bill sees."""
    assert whole.ended is not None
    assert rest.ended is not None
    assert rest.ended.error is None
    assert rest.ended.prompt_tokens == whole.ended.prompt_tokens
    for choice, before in enumerate(start):
        cut = len(before.token_ids)
        assert before.token_ids + rest.ids(choice) == whole.ids(choice), cut
        assert before.text + rest.text(choice) == whole.text(choice), cut
        if before.finish_reason is None:
            assert rest.reason(choice) == whole.reason(choice), cut
        if asked.logprobs is not None:
            again, first = logprobs_of(rest, choice), logprobs_of(whole, choice)[cut:]
            assert [it.token for it in again] == [it.token for it in first]
            said = [value for it in again for value in (it.logprob, *(at for _, at in it.top))]
            want = [value for it in first for value in (it.logprob, *(at for _, at in it.top))]
            assert said == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("name", EXACT)
async def test_a_cut_changes_nothing(vllm_recorder: EngineRecorder, name: str) -> None:
    row = EXACT[name]
    asked = row.body()
    whole = await vllm_recorder.run(asked)
    tokens = len(whole.ids())
    assert tokens >= 3
    if name.startswith("json_schema"):
        assert set(json.loads(whole.text())) == {"name", "age"}
        assert whole.reason() == "stop"
    for cut in range(1, tokens + 1, row.step):
        # of several choices each is cut elsewhere
        cuts = [min(len(whole.ids(it)), cut + 2 * it) for it in range(asked.n)]
        start = tuple(logged(whole, it, at) for it, at in enumerate(cuts))
        rest = await vllm_recorder.run(asked, start)
        assert_joined(asked, whole, start, rest)


@pytest.mark.parametrize("name", DRAWN)
async def test_what_is_drawn_goes_on(vllm_recorder: EngineRecorder, name: str) -> None:
    asked = DRAWN[name].body()
    whole = await vllm_recorder.run(asked)
    tokens = len(whole.ids())
    for cut in (1, tokens - 1):
        start = (logged(whole, 0, cut),)
        rest = await vllm_recorder.run(asked, start)
        assert rest.ended is not None
        assert rest.ended.error is None
        assert 1 <= len(rest.ids()) <= DRAWN[name].max_tokens - cut
        assert rest.reason() == "stop" or cut + len(rest.ids()) == DRAWN[name].max_tokens
        if asked.seed is not None:
            assert (await vllm_recorder.run(asked, start)).ids() == rest.ids()


async def test_a_seed_does_not_draw_its_beginning_again(vllm_recorder: EngineRecorder) -> None:
    asked = Body(prompt="x x x x x x", max_tokens=12, temperature=2.0, seed=11)
    whole = await vllm_recorder.run(asked)
    sibling = Body(prompt=asked.prompt, max_tokens=12, temperature=2.0, seed=11, n=2)
    rest = await vllm_recorder.run(asked, (logged(whole, 0, 1),))
    other = await vllm_recorder.run(sibling)
    assert rest.ids()[:4] not in (whole.ids()[:4], other.ids(1)[:4])


async def test_a_guided_answer_is_valid_wherever_chance_leads_it(
    vllm_recorder: EngineRecorder,
) -> None:
    asked = EXACT["json_schema"].body(temperature=1.5, seed=3)
    whole = await vllm_recorder.run(asked)
    for cut in range(1, len(whole.ids()), 5):
        start = logged(whole, 0, cut)
        rest = await vllm_recorder.run(asked, (start,))
        found = json.loads(start.text + rest.text())
        assert set(found) == {"name", "age"}
        assert 10 <= found["age"] <= 99


async def test_resumed_runs_of_all_kinds_run_side_by_side(vllm_recorder: EngineRecorder) -> None:
    """Rows of a batch move while others end: each keeps its own counts and its own grammar."""
    names = ["json_schema", "frequency_penalty", "greedy", "presence_penalty"]
    names += ["json_object_penalties", "logprobs"]
    bodies = [EXACT[name].body() for name in names]
    wholes = [await vllm_recorder.run(body) for body in bodies]
    cuts = [1 + index % 3 for index in range(len(names))]
    starts = [logged(whole, 0, cut) for whole, cut in zip(wholes, cuts, strict=True)]
    runs = [
        vllm_recorder.submit(body, (start,)) for body, start in zip(bodies, starts, strict=True)
    ]
    for run_id, whole, start in zip(runs, wholes, starts, strict=True):
        rest = await vllm_recorder.ended(run_id)
        assert start.token_ids + rest.ids() == whole.ids()
        assert start.text + rest.text() == whole.text()


async def test_the_engine_says_what_it_resumes(vllm_recorder: EngineRecorder) -> None:
    assert vllm_recorder.engine.resumes == FEATURES


def code_of(answer: Answer) -> str | None:
    assert answer.ended is not None
    return None if answer.ended.error is None else answer.ended.error.code


async def test_tokens_that_are_no_beginning_of_the_grammar_are_not_continued(
    vllm_recorder: EngineRecorder,
) -> None:
    plain = await vllm_recorder.run(EXACT["greedy"].body())
    asked = EXACT["json_schema"].body()
    answer = await vllm_recorder.run(asked, (logged(plain, 0, 3),))
    assert code_of(answer) == "interrupted"
    assert answer.outputs == []


async def test_a_grammar_of_another_library_is_not_continued(vllm_recorder: EngineRecorder) -> None:
    schema = {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 90}
    asked = Body(
        prompt="A number:",
        max_tokens=8,
        temperature=0.0,
        response_format=ResponseFormat(type="json_schema", schema=schema),
    )
    whole = await vllm_recorder.run(asked)
    assert code_of(whole) is None
    assert int(whole.text()) % 5 == 0
    answer = await vllm_recorder.run(asked, (logged(whole, 0, 1),))
    assert code_of(answer) == "interrupted"
    # nothing was logged: it runs anew, by that other library
    anew = await vllm_recorder.run(asked, (Logged(),))
    assert anew.text() == whole.text()


async def test_a_grammar_that_takes_too_long_is_not_continued(
    vllm_recorder: EngineRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams: Any = vllm_recorder.engine
    seams = seams._seams
    asked = EXACT["json_schema"].body()
    whole = await vllm_recorder.run(asked)
    released = threading.Event()
    follow = seams._follow
    monkeypatch.setattr(seams, "_follow", lambda wanted: released.wait(10) and follow(wanted))
    monkeypatch.setattr(seams, "_compile_seconds", 0.1)
    answer = await vllm_recorder.run(asked, (logged(whole, 0, 2),))
    released.set()
    assert code_of(answer) == "interrupted"
    assert answer.outputs == []


@pytest.mark.parametrize("fields", [{"presence_penalty": 1.0}, {"response_format": "json"}])
async def test_an_engine_that_cannot_resume_a_feature_refuses_to(fields: dict[str, Any]) -> None:
    from consumers.inference.engine.vllm_seams import Seams  # noqa: PLC0415

    if "response_format" in fields:
        fields = {"response_format": ResponseFormat(type="json_object")}
    run = Run(1, "id", "m", COMPLETIONS, Body(prompt=FACTS, **fields))
    seams = Seams()

    class Half:
        count = 1

    with pytest.raises(Refusal) as found:
        await seams.prepare(run, [Half()])  # type: ignore[list-item]
    assert found.value.code == "interrupted"
    Half.count = 0
    await seams.prepare(run, [Half()])  # type: ignore[list-item]
    seams.close()


SPECULATIVE = 'speculative_config={"method": "ngram", "num_speculative_tokens": 3}'


def processors(model: Path, *options: str) -> Any:
    engine: Any = make_engine("vllm", str(model), options)
    return engine._process._arguments.logits_processors


def test_with_speculative_decoding_nothing_that_looks_back_is_resumed(
    vllm_recorder: EngineRecorder, vllm_model_dir: Path
) -> None:
    ours = "consumers.inference.engine.vllm_continuation:Continuation"
    assert processors(vllm_model_dir) == [ours]
    theirs = 'logits_processors=["a.b:C"]'
    assert processors(vllm_model_dir, theirs) == ["a.b:C", ours]
    assert processors(vllm_model_dir, SPECULATIVE) is None
    with pytest.raises(EngineOptionError, match="exclude each other"):
        processors(vllm_model_dir, SPECULATIVE, theirs)


def test_the_other_model_runner_resumes_nothing_that_looks_back(
    vllm_recorder: EngineRecorder, vllm_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert processors(vllm_model_dir) is None
