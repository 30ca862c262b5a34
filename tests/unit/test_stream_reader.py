"""The reader's rule where no worker of ours would ever put it to the test; the rest is in tests/property."""

import pytest

from core.stream import Reader, Visible
from schemas.replies import AnyEvent, Events, Finished, Started, Tokens, TokenUsage
from schemas.requests import COMPLETIONS, RequestInfo

SAID = {"id": "r1", "tenant": "acme", "q": "requests.default.standard/0", "offset": 7, "epoch": 1}
KEY = ("acme", "r1")


def begun() -> Started:
    info = RequestInfo(model="m", tier="standard", endpoint=COMPLETIONS)
    return Started(**SAID, starts=1, counts=(0,), info=info, worker="w1")  # type: ignore[arg-type]


def token(seq: int) -> Tokens:
    return Tokens(**SAID, choice=0, seq=seq, token_ids=(5,), text="x")  # type: ignore[arg-type]


def finished(*counts: int) -> Finished:
    usage = TokenUsage(prompt_tokens=1, completion_tokens=sum(counts))
    return Finished(**SAID, counts=counts, finish_reasons=("stop",), usage=usage)  # type: ignore[arg-type]


def shown(reader: Reader, *events: AnyEvent) -> list[Visible]:
    return reader.feed(Events(events=events))


@pytest.mark.parametrize("counts", [(), (1,), (3,), (2, 1)])
def test_a_terminal_that_counts_other_tokens_ends_nothing(counts: tuple[int, ...]) -> None:
    reader = Reader()
    events = begun(), token(0), token(1), finished(*counts)
    assert shown(reader, *events) == list(events[:3])
    assert reader.states[KEY].terminal is None
    assert reader.states[KEY].gap == (sum(counts) > 2)
    right = finished(2)
    assert shown(reader, right) == [right]
