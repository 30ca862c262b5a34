"""What every engine does, scripted or real."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from consumers.inference.engine.options import make_engine
from consumers.inference.engine.ports import Logged, RunEnded
from schemas.requests import Body, Message
from tests.engine_recorder import EngineRecorder, logged_at

PROMPT = "The first ten whole numbers are one, two, three,"
TOKENS = 10
SCRIPTED = {"scripted": ["slots=4"], "scripted-paced": ["slots=4", "tokens_per_second=500"]}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=[*SCRIPTED, pytest.param("vllm", marks=pytest.mark.vllm)])
def real_recorder(request: pytest.FixtureRequest) -> EngineRecorder | str:
    """The real engine, started only if one of its tests runs; or which scripted one is meant."""
    if request.param == "vllm":
        shared: EngineRecorder = request.getfixturevalue("vllm_recorder")
        shared.calls.clear()
        return shared
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def recorder(real_recorder: EngineRecorder | str) -> AsyncIterator[EngineRecorder]:
    if isinstance(real_recorder, EngineRecorder):
        yield real_recorder
        return
    engine = make_engine("scripted", None, [*SCRIPTED[real_recorder], "context_tokens=2048"])
    recorder = await EngineRecorder(engine).start()
    yield recorder
    await recorder.engine.stop()


def body(**fields: Any) -> Body:
    given = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0, **fields}
    return Body(**given)


async def test_an_answer_has_max_tokens_and_ends_by_length(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body())
    assert answer.ended is not None
    assert answer.ended.error is None
    assert len(answer.ids()) == TOKENS
    assert answer.reason() == "length"
    assert answer.text()
    assert answer.ended.prompt_tokens > 0
    assert 0 <= answer.ended.cached_tokens <= answer.ended.prompt_tokens


async def test_a_greedy_answer_repeats(recorder: EngineRecorder) -> None:
    first, second = await recorder.run(body()), await recorder.run(body())
    assert first.ids() == second.ids()
    assert first.text() == second.text()


async def test_chat_messages_are_answered(recorder: EngineRecorder) -> None:
    messages = (Message(role="developer", content="Be brief."), Message(role="user", content="Hi"))
    answer = await recorder.run(body(prompt=None, messages=messages, max_tokens=4))
    assert answer.ended is not None
    assert answer.ended.error is None
    assert 1 <= len(answer.ids()) <= 4


async def test_a_stop_string_ends_the_answer_and_is_not_shown(recorder: EngineRecorder) -> None:
    whole = await recorder.run(body())
    for start in (1, len(whole.text()) // 2, len(whole.text()) - 4):
        # three characters from anywhere lie across the borders of tokens now and then
        stop = whole.text()[start : start + 3]
        answer = await recorder.run(body(stop=(stop, "never said")))
        assert answer.text() == whole.text()[: whole.text().index(stop)]
        assert answer.reason() == "stop"
        assert answer.ids() == whole.ids()[: len(answer.ids())]
        assert answer.ended is not None
        assert answer.ended.error is None


async def test_the_tokens_end_with_the_one_that_completed_the_stop_string(
    recorder: EngineRecorder,
) -> None:
    whole = await recorder.run(body())
    stop = whole.text()[len(whole.text()) // 2 :][:3]
    answer = await recorder.run(body(stop=(stop,)))
    shorter = await recorder.run(body(max_tokens=len(answer.ids()) - 1))
    assert stop not in shorter.text()
    assert stop in (await recorder.run(body(max_tokens=len(answer.ids())))).text()


async def test_a_stop_string_that_never_comes_whole_withholds_nothing_in_the_end(
    recorder: EngineRecorder,
) -> None:
    whole = await recorder.run(body())
    answer = await recorder.run(body(stop=(whole.text()[-2:] + "\0",)))
    assert answer.text() == whole.text()
    assert answer.reason() == "length"


async def test_every_choice_is_answered(recorder: EngineRecorder) -> None:
    single = await recorder.run(body())
    answer = await recorder.run(body(n=2))
    for choice in (0, 1):
        assert answer.ids(choice) == single.ids()
        assert answer.text(choice) == single.text()
        assert answer.reason(choice) == "length"
    assert answer.ended is not None
    assert single.ended is not None
    assert answer.ended.prompt_tokens == single.ended.prompt_tokens


async def test_logprobs_come_one_per_token(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(logprobs=2, max_tokens=4))
    logprobs = [found for out in answer.outputs for found in out.logprobs or ()]
    assert len(logprobs) == 4
    for found in logprobs:
        assert found.logprob <= 0
        assert len(found.top) == 2
        assert found.top[0] == (found.token, found.logprob)
    plain = await recorder.run(body(logprobs=0, max_tokens=4))
    assert [len(p.top) for out in plain.outputs for p in out.logprobs or ()] == [0, 0, 0, 0]


async def test_without_logprobs_none_come(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(max_tokens=2))
    assert [out.logprobs for out in answer.outputs] == [None] * len(answer.outputs)


async def test_a_request_over_the_context_is_refused(recorder: EngineRecorder) -> None:
    context = recorder.engine.models[0].context_tokens
    answer = await recorder.run(body(max_tokens=context))
    assert answer.outputs == []
    assert answer.ended is not None
    assert answer.ended.error is not None
    assert answer.ended.error.code == "context_length_exceeded"
    assert PROMPT not in answer.ended.error.message


async def test_a_prompt_over_the_context_is_refused(recorder: EngineRecorder) -> None:
    context = recorder.engine.models[0].context_tokens
    answer = await recorder.run(body(prompt="word " * (context + 1), max_tokens=None))
    assert answer.ended is not None
    assert answer.ended.error is not None
    assert answer.ended.error.code == "context_length_exceeded"
    assert len(answer.ended.error.message) < 400


async def test_another_model_is_refused(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(), model="another")
    assert answer.ended is not None
    assert answer.ended.error is not None
    assert answer.ended.error.code == "model_not_found"


async def test_an_abort_silences_the_run_and_frees_its_slot(recorder: EngineRecorder) -> None:
    slots = recorder.engine.slots
    running = [recorder.submit(body(max_tokens=32)) for _ in range(slots)]
    await recorder.until(lambda: any(recorder.answers[run_id].outputs for run_id in running))
    said = {}
    for run_id in running:
        recorder.engine.abort(run_id)
        said[run_id] = len(recorder.answers[run_id].outputs)
    after = [recorder.submit(body(max_tokens=2)) for _ in range(slots)]
    for run_id in after:
        assert len((await recorder.ended(run_id)).ids()) == 2
    assert {run_id: len(recorder.answers[run_id].outputs) for run_id in running} == said


async def test_an_abort_before_the_first_report_means_none_at_all(recorder: EngineRecorder) -> None:
    run_id = recorder.submit(body())
    recorder.engine.abort(run_id)
    await recorder.run(body(max_tokens=2))
    assert recorder.answers[run_id].outputs == []
    assert recorder.answers[run_id].ended is None


async def test_an_abort_of_an_unknown_or_ended_run_is_ignored(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(max_tokens=2))
    recorder.engine.abort(answer.run_id)
    recorder.engine.abort(-1)
    assert len((await recorder.run(body(max_tokens=2))).ids()) == 2


async def test_more_runs_than_slots_all_end(recorder: EngineRecorder) -> None:
    runs = [recorder.submit(body(max_tokens=3)) for _ in range(2 * recorder.engine.slots + 1)]
    for run_id in runs:
        assert len((await recorder.ended(run_id)).ids()) == 3


async def test_the_last_output_and_the_end_come_in_one_call(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(max_tokens=3))
    last = next(call for call in recorder.calls if answer.ended in call)
    assert answer.outputs[-1] in last


async def test_reports_of_one_step_come_in_one_call(recorder: EngineRecorder) -> None:
    runs = [recorder.submit(body(max_tokens=8)) for _ in range(2)]
    for run_id in runs:
        await recorder.ended(run_id)
    together = [call for call in recorder.calls if {r.run_id for r in call} == set(runs)]
    assert together
    for call in recorder.calls:
        for run_id in runs:
            assert sum(r.run_id == run_id and not isinstance(r, RunEnded) for r in call) <= 1


async def test_a_resumed_run_says_the_rest_at_every_cut(recorder: EngineRecorder) -> None:
    whole = await recorder.run(body())
    assert whole.ended is not None
    for cut in range(TOKENS + 1):
        logged = await logged_at(recorder, body(), cut, ())
        rest = await recorder.run(body(), (logged,))
        assert logged.token_ids + rest.ids() == whole.ids(), cut
        assert logged.text + rest.text() == whole.text(), cut
        assert rest.reason() == "length"
        assert rest.ended is not None
        assert rest.ended.error is None
        # logged tokens are given back as prompt, and are no prompt tokens
        assert rest.ended.prompt_tokens == whole.ended.prompt_tokens
        assert rest.ended.cached_tokens <= rest.ended.prompt_tokens


async def test_a_stop_string_across_the_seam_is_found_and_hidden(recorder: EngineRecorder) -> None:
    whole = (await recorder.run(body())).text()
    stop = whole[len(whole) // 2 - 4 : len(whole) // 2 + 4]
    stopped = await recorder.run(body(stop=(stop,)))
    for cut in range(1, len(stopped.ids())):
        logged = await logged_at(recorder, body(), cut, (stop,))
        rest = await recorder.run(body(stop=(stop,)), (logged,))
        assert logged.text + rest.text() == stopped.text(), cut
        assert logged.token_ids + rest.ids() == stopped.ids(), cut
        assert rest.reason() == "stop"


async def test_logged_tokens_that_already_end_the_answer_are_not_continued(
    recorder: EngineRecorder,
) -> None:
    whole = await recorder.run(body())
    stop = whole.text()[len(whole.text()) // 2 :][:3]
    by_length = await recorder.run(body(), (Logged(whole.ids(), ""),))
    by_stop = await recorder.run(body(stop=(stop,)), (Logged(whole.ids()[:-1], ""),))
    for answer, reason in ((by_length, "length"), (by_stop, "stop")):
        assert answer.ids() == ()
        assert len(answer.outputs) == 1
        assert answer.reason() == reason
        assert answer.ended is not None
        assert answer.ended.error is None
    assert by_length.text() == whole.text()
    assert by_stop.text() == whole.text()[: whole.text().index(stop)]


async def test_a_run_whose_end_is_logged_ends_at_once(recorder: EngineRecorder) -> None:
    whole = await recorder.run(body())
    answer = await recorder.run(body(), (Logged(whole.ids(), whole.text(), "length"),))
    assert answer.outputs == []
    assert answer.ended is not None
    assert answer.ended.error is None
    assert answer.ended.prompt_tokens > 0


async def test_each_choice_goes_on_from_its_own_cut(recorder: EngineRecorder) -> None:
    whole = await recorder.run(body())
    early = await logged_at(recorder, body(), 2, ())
    late = await logged_at(recorder, body(), 7, ())
    done = Logged(whole.ids(), whole.text(), "length")
    answer = await recorder.run(body(n=3), (early, done, late))
    assert early.token_ids + answer.ids(0) == whole.ids()
    assert early.text + answer.text(0) == whole.text()
    assert answer.ids(1) == ()
    assert late.token_ids + answer.ids(2) == whole.ids()
    assert late.text + answer.text(2) == whole.text()
    assert (answer.reason(0), answer.reason(1), answer.reason(2)) == ("length", None, "length")


async def test_a_cache_salt_changes_nothing_that_is_said(recorder: EngineRecorder) -> None:
    plain = await recorder.run(body())
    salted = await recorder.run(body(), cache_salt="tenant-a")
    assert salted.text() == plain.text()


async def test_records_can_carry_what_an_engine_reports(recorder: EngineRecorder) -> None:
    answer = await recorder.run(body(logprobs=1, max_tokens=2))
    for report in (*answer.outputs, answer.ended):
        assert msgspec.json.encode(report)


async def test_stop_is_idempotent_and_silent() -> None:
    recorder = await EngineRecorder(make_engine("scripted", None, [])).start()
    recorder.submit(body())
    await recorder.engine.stop()
    await recorder.engine.stop()
    await asyncio.sleep(0.01)
    assert recorder.calls == []
    assert recorder.deaths == []
