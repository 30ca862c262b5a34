"""Against vLLM's own server: what is read of its client's results, and what is made of pairs of them."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.vllm_client import Load, without_fields, words_of
from benchmarks.vllm_figures import (
    added,
    cpu_ms_per_token,
    problems,
    ratios,
    read_result,
    steps_added,
    turns,
)
from benchmarks.vllm_report import show_vllm_serve
from benchmarks.vllm_server import option_words

TIMES = {
    f"p{share}_{metric}_ms": float(share) for share in (50, 95, 99) for metric in ("ttft", "itl")
}


def result(**changed: Any) -> dict[str, Any]:
    """The client's, of two requests of three tokens each."""
    return {
        "completed": 2,
        "failed": 0,
        "errors": ["", ""],
        "output_lens": [3, 3],
        "itls": [[0.1, 0.1], [0.1, 0.1, 0.0]],
        "total_input_tokens": 20,
        "total_output_tokens": 6,
        "duration": 2.0,
        "output_throughput": 3.0,
        **TIMES,
        **{f"p{share}_e2el_ms": 1.0 for share in (50, 95, 99)},
        **changed,
    }


def measured(**changed: Any) -> dict[str, Any]:
    spent = {"server": 0.3, "engine": 3.0, "client": 0.6}
    return {**read_result(result(), 3), "cpu_seconds": spent, **changed}


def rounds(**ours: Any) -> list[Any]:
    pair = {"inferlog": measured(**ours), "vllm": measured()}
    return [{"streams_32": pair, "one_stream": pair}]


def test_a_result_says_how_many_answers_are_not_of_full_length() -> None:
    figures = read_result(result(output_lens=[3, 2]), 3)
    assert figures["wrong_length"] == 1
    assert figures["output_tokens_per_second"] == 3.0
    assert figures["gaps_per_request"] == 2.5


def test_of_a_failure_the_last_line_is_kept() -> None:
    found = read_result(result(failed=1, errors=["", "Traceback\n  line\nBoom: why\n"]), 3)
    assert (found["failed"], found["first_error"]) == (1, "Boom: why")


def test_the_same_work_done_in_full_is_no_problem() -> None:
    assert problems(rounds()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"failed": 1, "first_error": "Boom"}, "1 failed (Boom)"),
        ({"wrong_length": 2}, "2 answers are not of full length"),
        ({"input_tokens": 21}, "prompts differ in tokens"),
    ],
)
def test_other_work_is_a_problem(changed: dict[str, Any], said: str) -> None:
    assert any(said in it for it in problems(rounds(**changed)))


def test_ratios_and_differences_are_made_round_by_round() -> None:
    both = rounds(output_tokens_per_second=2.4, p99_itl_ms=109.0)
    assert ratios(both, "streams_32", "output_tokens_per_second") == [pytest.approx(0.8)]
    assert added(both, "streams_32", "p99_itl_ms") == [10.0]
    # one step is vLLM's median gap, 50 ms here
    assert steps_added(both, "streams_32") == [0.2]
    assert cpu_ms_per_token(both, "one_stream", "vllm", "engine") == [500.0]


def test_who_ends_a_round_begins_the_next() -> None:
    ours, theirs = "inferlog", "vllm"
    assert turns(1) == [(ours, [0]), (theirs, [0])]
    assert turns(3) == [(ours, [0]), (theirs, [0, 1]), (ours, [1, 2]), (theirs, [2])]


def test_the_table_names_both_and_the_ratio() -> None:
    idle = {"inferlog": {"server": 1.0, "engine": 2.0}, "vllm": {"server": 1.0, "engine": 2.0}}
    shown = show_vllm_serve({"rounds": rounds(), "idle_cpu_ms_per_second": idle})
    assert "ratio 1.000 (1.000 to 1.000)" in shown
    assert "| 32 streams: failed requests | 0 | 0 |  |" in shown


@pytest.mark.parametrize(
    ("received", "read"),
    [
        (b'retry: 1000\nid: 0\ndata: {"a": 1}\n\n', b'data: {"a": 1}\n\n'),
        (b'id: 7\ndata: {"a": "id: 7"}\n\nid: 8\ndata: {}', b'data: {"a": "id: 7"}\n\ndata: {}'),
        (
            b'data: {"id": 7}\n\n: beat\n\ndata: [DONE]',
            b'data: {"id": 7}\n\n: beat\n\ndata: [DONE]',
        ),
        # the client strips what it receives, so that a field may be all that is left at the end
        (b"data: {}\n\nid: 9", b"data: {}\n\n"),
    ],
)
def test_only_data_and_comments_reach_the_client(received: bytes, read: bytes) -> None:
    assert without_fields(received) == read


def test_the_client_is_told_to_let_no_answer_end_early() -> None:
    load = Load(prompts=4, streams=2, input_tokens=65, output_tokens=8)
    words = words_of(load, port=1, model=Path("/m"), name="m", end_id=2, seed=5)
    said = dict(zip(words[::2], words[1::2], strict=False))
    assert said["--extra-body"] == '{"logit_bias": {"2": -100}}'
    assert said["--prefix-repetition-prefix-len"] == "32"
    assert said["--prefix-repetition-suffix-len"] == "33"
    assert "--save-detailed" in words


def test_engine_arguments_become_vllms_options() -> None:
    arguments = {"enforce_eager": True, "enable_prefix_caching": False, "max_num_seqs": 32}
    assert option_words(arguments) == [
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--max-num-seqs",
        "32",
    ]
