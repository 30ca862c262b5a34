import asyncio
from hashlib import sha256

import pytest

from consumers.inference.engine.options import EngineOptionError, make_engine
from schemas.requests import Body, Message, ResponseFormat
from tests.engine_recorder import EngineRecorder


async def started(*options: str) -> EngineRecorder:
    return await EngineRecorder(make_engine("scripted", None, options)).start()


def prefix(prompt: str) -> str:
    return sha256(prompt.encode()).hexdigest()[:6]


async def test_the_answer_is_derived_from_the_prompt_alone() -> None:
    recorder = await started()
    answer = await recorder.run(Body(prompt="two words", max_tokens=3))
    start = prefix("two words")
    assert answer.text() == f"{start}.0 {start}.1 {start}.2 "
    assert answer.ids() == (0, 1, 2)
    assert answer.ended is not None
    assert answer.ended.prompt_tokens == 2
    await recorder.engine.stop()


async def test_chat_is_answered_by_its_contents() -> None:
    recorder = await started()
    messages = (Message(role="system", content="one"), Message(role="user", content="two"))
    answer = await recorder.run(Body(messages=messages, max_tokens=1))
    assert answer.text() == f"{prefix('one' + chr(10) + 'two')}.0 "
    await recorder.engine.stop()


async def test_sixteen_tokens_unless_said_otherwise_all_in_one_call() -> None:
    recorder = await started()
    answer = await recorder.run(Body(prompt="x"))
    assert len(answer.ids()) == 16
    assert len(recorder.calls) == 1
    await recorder.engine.stop()


async def test_runs_of_one_loop_turn_share_one_call() -> None:
    recorder = await started()
    runs = [recorder.submit(Body(prompt=f"prompt {i}")) for i in range(64)]
    for run_id in runs:
        await recorder.ended(run_id)
    assert len(recorder.calls) == 1
    await recorder.engine.stop()


async def test_a_large_batch_is_stepped_128_streams_a_loop_turn() -> None:
    """Whatever else the loop has to do goes in between; one that is aborted meanwhile says no more."""
    recorder = await started("slots=1000", "tokens_per_second=1000")
    runs = [recorder.submit(Body(prompt=f"prompt {i}", max_tokens=2)) for i in range(300)]
    while not recorder.calls:
        await asyncio.sleep(0)
    assert len(recorder.calls) == 1, "the loop was given back behind the first of them"
    recorder.engine.abort(runs[-1])
    for run_id in runs[:-1]:
        assert (await recorder.ended(run_id)).ids() == (0, 1)
    steps = [{report.run_id for report in call} for call in recorder.calls]
    assert [len(step) for step in steps[:3]] == [128, 128, 43]
    assert set().union(*steps[:3]) == set(runs[:-1])
    await recorder.engine.stop()


async def test_at_a_pace_every_step_gives_each_stream_its_tokens() -> None:
    recorder = await started("tokens_per_second=200", "ttft_ms=10")
    runs = [recorder.submit(Body(prompt=f"prompt {i}", max_tokens=5)) for i in range(3)]
    for run_id in runs:
        answer = await recorder.ended(run_id)
        assert answer.ids() == (0, 1, 2, 3, 4)
    assert all({r.run_id for r in call} == set(runs) for call in recorder.calls)
    assert recorder.engine.step_seconds() == pytest.approx(0.005)
    await recorder.engine.stop()


async def test_a_pace_holds_after_an_idle_time() -> None:
    """Time without a stream is nothing to catch up with."""
    recorder = await started("tokens_per_second=50")
    await recorder.run(Body(prompt="x", max_tokens=1))
    await asyncio.sleep(0.1)
    run_id = recorder.submit(Body(prompt="x", max_tokens=3))
    await recorder.until(lambda: bool(recorder.answers[run_id].outputs))
    assert recorder.answers[run_id].ids() == (0,)
    await recorder.engine.stop()


async def test_runs_beyond_the_slots_wait_in_order() -> None:
    recorder = await started("slots=1", "tokens_per_second=500")
    first, second = (recorder.submit(Body(prompt="x", max_tokens=3)) for _ in range(2))
    await recorder.ended(first)
    assert recorder.answers[second].outputs == []
    assert len((await recorder.ended(second)).ids()) == 3
    await recorder.engine.stop()


async def test_it_dies_in_place_of_the_step_that_was_asked_for() -> None:
    recorder = await started("tokens_per_second=500", "fail=die_after:3")
    answer = await recorder.run(Body(prompt="x", max_tokens=10))
    assert len(recorder.deaths) == 1
    # a step that comes late makes up for those it missed, so only their number is certain
    assert len(recorder.calls) == 2
    assert answer.ids() == tuple(range(len(answer.ids())))
    assert answer.ids()[:2] == (0, 1)
    assert answer.ended is None
    recorder.submit(Body(prompt="x"))
    await asyncio.sleep(0.01)
    assert len(recorder.calls) == 2
    await recorder.engine.stop()


async def test_a_prompt_can_kill_it() -> None:
    recorder = await started("fail=die_on:poison")
    await recorder.run(Body(prompt="innocent"))
    assert recorder.deaths == []
    await recorder.run(Body(prompt="the poison"))
    assert len(recorder.deaths) == 1
    await recorder.engine.stop()


async def test_a_prompt_can_fail_alone() -> None:
    recorder = await started("fail=error:bad luck")
    good, bad = (recorder.submit(Body(prompt=prompt)) for prompt in ("good", "such bad luck"))
    ended = (await recorder.ended(bad)).ended
    assert ended is not None
    assert ended.error is not None
    assert ended.error.code == "engine_failed"
    assert "luck" not in ended.error.message
    assert len((await recorder.ended(good)).ids()) == 16
    await recorder.engine.stop()


async def test_a_stalled_run_holds_its_slot_until_it_is_aborted() -> None:
    recorder = await started("slots=1", "fail=stall:stall")
    stalled = recorder.submit(Body(prompt="stall"))
    waiting = recorder.submit(Body(prompt="next"))
    await asyncio.sleep(0.02)
    assert recorder.calls == []
    recorder.engine.abort(stalled)
    assert len((await recorder.ended(waiting)).ids()) == 16
    assert recorder.answers[stalled].outputs == []
    await recorder.engine.stop()


async def test_guided_decoding_is_refused() -> None:
    recorder = await started()
    answer = await recorder.run(
        Body(prompt="x", response_format=ResponseFormat(type="json_object"))
    )
    assert answer.ended is not None
    assert answer.ended.error is not None
    assert answer.ended.error.code == "unsupported_parameter"
    assert answer.ended.error.param == "response_format"
    await recorder.engine.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["slots"], "KEY=VALUE"),
        (["slot=4"], "did you mean slots"),
        (["zzz=4"], "known are: context_tokens, fail, slots, tokens_per_second, ttft_ms"),
        (["slots=many"], "whole number"),
        (["slots=0"], "at least 1"),
        (["slots=1", "slots=2"], "twice"),
        (["tokens_per_second=-1"], "negative"),
        (["fail=explode:now"], "die_after:N"),
        (["fail=die_after:soon"], "number from 1"),
    ],
)
def test_a_bad_option_is_named(options: list[str], said: str) -> None:
    with pytest.raises(EngineOptionError, match=said):
        make_engine("scripted", None, options)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(EngineOptionError, match="vllm, scripted"):
        make_engine("steam", None)


def test_vllm_without_a_model_is_refused() -> None:
    with pytest.raises(EngineOptionError, match="needs a model"):
        make_engine("vllm", None)


def test_options_are_typed_and_fail_may_be_repeated() -> None:
    options = ["ttft-ms=1.5", "slots=3", "fail=stall:a", "fail=error:b"]
    engine = make_engine("scripted", "another-name", options)
    assert engine.slots == 3
    assert engine.models[0].name == "another-name"
