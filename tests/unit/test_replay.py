import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from inferlog.api_client import Chunk, sse_events
from inferlog.problems import CommandFailed
from inferlog.replay_table import Outcome, percentile, summarise
from inferlog.stream_check import StreamCheck
from inferlog.trace import Rates, Row, fitting_stretch, read_trace, synthetic_prompt

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "azure_code_500.csv"


def chunk(
    text: str, position: int | None, reason: str | None = None, usage: int | None = None
) -> Chunk:
    counts = None if usage is None else {"completion_tokens": usage}
    return Chunk(text, position, reason, counts, time.monotonic())


def scripted(prompt: str, *numbers: int) -> str:
    prefix = sha256(prompt.encode()).hexdigest()[:6]
    return "".join(f"{prefix}.{number} " for number in numbers)


def check(*chunks: Chunk, prompt: str = "p", tokens: int = 4) -> tuple[int, int]:
    it = StreamCheck(prompt, tokens)
    for each in chunks:
        it.feed(each)
    return it.lost(), it.repeated()


def test_a_whole_scripted_answer_has_nothing_lost_or_repeated() -> None:
    whole = [chunk(scripted("p", 0, 1), 2), chunk(scripted("p", 2, 3), 4, "length")]
    assert check(*whole) == (0, 0)


@pytest.mark.parametrize(
    ("numbers", "lost", "repeated"),
    [((0, 1, 3), 1, 1), ((0, 1, 1, 2, 3), 0, 3), ((0, 1), 2, 0), ((0, 2, 1, 3), 0, 2)],
)
def test_missing_double_and_disordered_scripted_tokens_are_found(
    numbers: tuple[int, ...], lost: int, repeated: int
) -> None:
    assert check(chunk(scripted("p", *numbers), 4, "length")) == (lost, repeated)


def test_tokens_of_another_prompt_are_not_taken_for_ours() -> None:
    assert check(chunk(scripted("other", 0, 1, 2, 3), 4, "length")) == (4, 4)


def test_of_a_real_model_the_positions_must_rise_and_match_the_usage() -> None:
    assert check(chunk("Hel", 1), chunk("lo", 3), chunk("", 3, "stop"), chunk("", 3, None, 3)) == (
        0,
        0,
    )
    assert check(chunk("Hel", 1), chunk("lo", 3, "stop"), chunk("", 3, None, 5))[0] == 2
    assert check(chunk("Hel", 1), chunk("lo", 2), chunk("lo", 2), chunk("", 2, "stop"))[1] == 1


def test_an_answer_without_its_end_is_lost() -> None:
    assert check() == (1, 0)
    assert check(chunk("Hel", 1), chunk("", None, None, 1))[0] == 1


def test_the_example_trace_is_read_in_order_and_clipped() -> None:
    rows = read_trace(EXAMPLE, rows=60, prompt_tokens_max=128, output_tokens_max=32)
    assert len(rows) == 60
    assert rows[0] == Row(0.0, 128, 10)
    assert all(1 <= row.prompt_tokens <= 128 and 1 <= row.output_tokens <= 32 for row in rows)
    assert [row.at_s for row in rows] == sorted(row.at_s for row in rows)
    assert len(read_trace(EXAMPLE)) == 500


def test_what_is_no_trace_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(CommandFailed, match="there is no file"):
        read_trace(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CommandFailed, match="has no column TIMESTAMP"):
        read_trace(path)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(CommandFailed, match="has no rows"):
        read_trace(path)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,many,10\n")
    with pytest.raises(CommandFailed, match="row 1, cannot be read"):
        read_trace(path)


def test_prompts_have_their_length_and_share_no_beginning() -> None:
    prompts = [synthetic_prompt(number, 20, "run") for number in range(50)]
    assert {len(prompt.split()) for prompt in prompts} == {20}
    assert len({prompt.split()[0] for prompt in prompts}) == 50
    assert prompts[3] == synthetic_prompt(3, 20, "run")
    assert len(synthetic_prompt(0, 1, "run").split()) == 1


def test_a_slow_machine_stretches_time_and_a_fast_one_never_shrinks_it() -> None:
    rows = [Row(float(second), 100, 10) for second in range(11)]
    assert fitting_stretch(rows, Rates(prefill=1e9, decode=None)) == 1.0
    # 1100 prompt tokens at 50/s are 22 s of work, 110 answer tokens at 10/s are 11 s, in 10 s
    slow = fitting_stretch(rows, Rates(prefill=50, decode=10), utilisation=0.5)
    assert slow == pytest.approx(33 / 5)


def test_percentiles_lie_between_the_nearest_ranks() -> None:
    values = [float(it) for it in range(1, 101)]
    assert percentile(values, 50) == 50.5
    assert percentile(values, 99) == pytest.approx(99.01)
    assert percentile([7.0], 95) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_summary_counts_requests_and_misses_none() -> None:
    rows = [Row(0.0, 10, 5)] * 4
    good = Outcome(due_s=10.0, first_s=10.5, last_s=11.5, end_s=12.0, output_tokens=5)
    torn = Outcome(due_s=10.0, first_s=10.5, end_s=11.0, output_tokens=2, lost=3, error="cut")
    refused = Outcome(due_s=10.0, error="overloaded")
    it = summarise([good, torn, refused], rows, "m", 1.0, 2.0, 0)
    assert (it.requests, it.completed, it.lost, it.repeated) == (3, 1, 2, 0)
    assert it.failed == {"cut": 1, "overloaded": 1}
    assert it.ttft_seconds["p50"] == 0.5
    assert it.time_per_output_token_seconds["p99"] == 0.25
    assert it.tokens_per_second == 3.5
    assert not it.flawless()
    assert summarise([good], rows[:1], "m", 1.0, 2.0, 0).flawless()


async def test_events_keep_their_ids_and_comments_are_skipped() -> None:
    async def lines() -> AsyncIterator[str]:
        for line in (
            "retry: 1000",
            "",
            ": heartbeat",
            "",
            "id: 3",
            "data: {",
            "data: }",
            "",
            "data: [DONE]",
            "",
        ):
            yield line

    assert [event async for event in sse_events(lines())] == [("3", "{\n}"), ("3", "[DONE]")]
