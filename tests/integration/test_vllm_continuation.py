"""The half of a resumed run in vLLM's process, on logits of our own: no engine is started."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.failover_rows import PERSON

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

VOCABULARY = 49152
END = 2


@pytest.fixture(scope="module")
def tokenizer(vllm_model_dir: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer  # noqa: PLC0415

        return AutoTokenizer.from_pretrained(str(vllm_model_dir))


@pytest.fixture
def continuation(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch  # noqa: PLC0415

        from consumers.inference.engine import vllm_continuation  # noqa: PLC0415

    monkeypatch.setattr(vllm_continuation, "cached_tokenizer_from_config", lambda _: tokenizer)
    model = SimpleNamespace(
        get_vocab_size=lambda: VOCABULARY, hf_config=SimpleNamespace(model_type="llama")
    )
    config = SimpleNamespace(
        model_config=model,
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        speculative_config=None,
    )
    return vllm_continuation.Continuation(config, torch.device("cpu"), False)


def added(at: int, logged: list[int], output: list[int], **asked: Any) -> tuple[Any, ...]:
    """One entry of vLLM's list of new rows: a run that goes on after `logged`."""
    from consumers.inference.engine.vllm_arguments import CONTINUATION, Continued  # noqa: PLC0415

    params = SimpleNamespace(
        extra_args={CONTINUATION: Continued(len(logged), **asked).to_argument()},
        all_stop_token_ids={END},
    )
    return (at, params, [1, 1, 1, *logged], output)


def change(*new: Any, removed: Any = (), moved: Any = (), rows: int = 3) -> Any:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate  # noqa: PLC0415

    return BatchUpdate(rows, list(removed), list(new), list(moved))


def undivided(logits: Any, rows: dict[int, tuple[float, float, list[int]]]) -> Any:
    """What vLLM does to these logits when all tokens are its own output."""
    import torch  # noqa: PLC0415
    from vllm.v1.sample.ops.penalties import apply_all_penalties  # noqa: PLC0415

    count = logits.shape[0]
    given = [rows.get(at, (0.0, 0.0, [])) for at in range(count)]
    prompts = torch.full((count, 1), VOCABULARY)
    presence = torch.tensor([it[0] for it in given])
    frequency = torch.tensor([it[1] for it in given])
    apply_all_penalties(
        logits, prompts, presence, frequency, torch.ones(count), [it[2] for it in given]
    )
    return logits


def some_logits(rows: int) -> Any:
    import torch  # noqa: PLC0415

    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(rows))


def test_penalties_are_vllms_own_to_the_last_bit_wherever_rows_move(continuation: Any) -> None:
    import torch  # noqa: PLC0415
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality  # noqa: PLC0415

    first, second = [7], list[int]()
    rows = {0: (1.5, 0.3, [5, 5, 6]), 2: (-0.7, 0.9, [8, 9])}
    one = added(0, [5, 5, 6], first, presence=1.5, frequency=0.3)
    two = added(2, [8, 9], second, presence=-0.7, frequency=0.9)

    def compare(where: dict[int, int], count: int) -> None:
        want = {
            at: (rows[it][0], rows[it][1], rows[it][2] + (first if it == 0 else second))
            for at, it in where.items()
        }
        got = continuation.apply(some_logits(count))
        assert torch.equal(got, undivided(some_logits(count), want))

    continuation.update_state(change(one, two))
    compare({0: 0, 2: 2}, 3)
    first.append(5)
    second += [8, 8]
    continuation.update_state(None)
    compare({0: 0, 2: 2}, 3)
    continuation.update_state(change(moved=[(0, 1, MoveDirectionality.SWAP)]))
    second.append(1)
    compare({1: 0, 2: 2}, 3)
    continuation.update_state(
        change(removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)], rows=2)
    )
    compare({1: 2}, 2)
    continuation.update_state(change(removed=[1], rows=1))
    compare({}, 1)


def test_a_token_that_is_not_back_yet_is_counted_once_it_is(continuation: Any) -> None:
    import torch  # noqa: PLC0415

    output = [4, -1]
    continuation.update_state(change(added(0, [3], output, frequency=1.0), rows=1))
    for known in ([3, 4], [3, 4, 11]):
        got = continuation.apply(some_logits(1))
        assert torch.equal(got, undivided(some_logits(1), {0: (0.0, 1.0, known)}))
        output[1] = 11


def test_runs_that_are_not_resumed_are_not_touched(continuation: Any) -> None:
    import torch  # noqa: PLC0415

    plain = SimpleNamespace(extra_args=None)
    continuation.update_state(change((0, plain, [1], []), (1, plain, [1], []), rows=2))
    assert not continuation._rows
    assert torch.equal(continuation.apply(some_logits(2)), some_logits(2))


def allowed(logits: Any, at: int) -> set[int]:
    """The tokens that may come in a row."""
    return set((logits[at] > float("-inf")).nonzero().flatten().tolist())


def test_a_grammar_goes_on_from_the_logged_tokens(continuation: Any, tokenizer: Any) -> None:
    schema = json.dumps(PERSON)
    whole = tokenizer('{"name": "Ann", "age": 41}')["input_ids"]
    output: list[int] = []
    continuation.update_state(change(added(1, whole[:2], output, grammar=schema), rows=3))
    for token_id in whole[2:]:
        logits = continuation.apply(some_logits(3))
        assert token_id in allowed(logits, 1)
        assert len(allowed(logits, 1)) < VOCABULARY
        assert len(allowed(logits, 0)) == len(allowed(logits, 2)) == VOCABULARY
        output.append(token_id)
        continuation.update_state(None)
    assert allowed(continuation.apply(some_logits(3)), 1) == {END}


def test_where_a_grammar_cannot_be_followed_nothing_but_the_end_may_come(
    continuation: Any, tokenizer: Any
) -> None:
    """An error would end the engine, and every run with it; the half outside sees that it ended."""
    wrong = tokenizer("Once upon")["input_ids"]
    rows = [
        added(0, wrong, [], grammar=json.dumps(PERSON)),
        added(1, [], [], grammar="no schema"),
    ]
    continuation.update_state(change(*rows, rows=2))
    logits = continuation.apply(some_logits(2))
    assert allowed(logits, 0) == allowed(logits, 1) == {END}
