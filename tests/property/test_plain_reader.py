"""The reader's rule as `examples/plain_producer.py` has it agrees with `core.stream`, record by record."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from core.stream import Reader, is_terminal
from schemas.codec import encode
from schemas.replies import (
    AnyEvent,
    Cancelled,
    Events,
    Fence,
    Finished,
    FinishReason,
    Released,
    ReplyRecord,
    Started,
    Tokens,
    TokenUsage,
)
from schemas.requests import CHAT, RequestInfo

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plain_producer.py"
KEY = ("t", "mine")
INFO = RequestInfo(endpoint=CHAT, model="m", tier="standard")


def example_rule() -> Callable[..., Iterator[dict[str, Any]]]:
    spec = importlib.util.spec_from_file_location("plain_producer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rule: Callable[..., Iterator[dict[str, Any]]] = module.visible
    return rule


visible = example_rule()
qs = st.sampled_from(["a/0", "a/1"])
small = st.integers(0, 3)


@st.composite
def events(draw: st.DrawFn) -> AnyEvent:
    said: dict[str, Any] = {
        "id": draw(st.sampled_from(["mine", "mine", "mine", "other"])),
        "tenant": draw(st.sampled_from(["t", "t", "t", "u"])),
        "q": draw(qs),
        "offset": draw(st.integers(0, 1)),
        "epoch": draw(small),
    }
    match draw(st.sampled_from(["started", "tokens", "tokens", "tokens", "released", "ended"])):
        case "started":
            return Started(starts=1, counts=(draw(small),), info=INFO, worker="w", **said)
        case "tokens":
            ids = tuple(draw(st.lists(small, max_size=2)))
            reason: FinishReason | None = "stop" if draw(st.integers(0, 2)) == 0 else None
            return Tokens(seq=draw(small), token_ids=ids, text="x", finish_reason=reason, **said)
        case "released":
            return Released(**said)
    counts = (draw(small),)
    if draw(st.booleans()):
        return Cancelled(counts=counts, **said)
    usage = TokenUsage(prompt_tokens=1, completion_tokens=1)
    return Finished(counts=counts, usage=usage, finish_reasons=("stop",), **said)


fences = st.builds(
    Fence, epoch=small, qs=st.lists(qs, min_size=1, max_size=2, unique=True).map(tuple)
)
batches = st.lists(events(), min_size=1, max_size=4).map(lambda them: Events(events=tuple(them)))
logs: st.SearchStrategy[list[ReplyRecord]] = st.lists(st.one_of(fences, batches), max_size=12)
floors = st.dictionaries(qs, small)


def told_by_core(log: list[ReplyRecord], floors: dict[str, int]) -> list[str]:
    reader, told = Reader(floors), []
    for record in log:
        for event in reader.feed(record):
            if (event.tenant, event.id) == KEY and not isinstance(event, Started):
                told.append(json.loads(encode(event))["kind"] + str(getattr(event, "seq", "")))
                if is_terminal(event):
                    return told
    return told


def told_by_example(log: list[ReplyRecord], floors: dict[str, int]) -> list[str]:
    state: dict[str, Any] = {}
    known, told = dict(floors), []
    for record in log:
        for event in visible(json.loads(encode(record)), known, KEY, state):
            if event["kind"] != "started":
                told.append(event["kind"] + str(event.get("seq", "")))
                if event["kind"] != "tokens":
                    return told
    return told


MINE: dict[str, Any] = {"id": "mine", "tenant": "t", "q": "a/0", "offset": 0, "epoch": 1}
AFTER_THE_END = Events(
    events=(
        Tokens(seq=0, token_ids=(1,), text="x", finish_reason="stop", **MINE),
        Tokens(seq=1, token_ids=(2,), text="y", **MINE),
    )
)


@example([AFTER_THE_END], {})
@given(logs, floors)
def test_the_plain_reader_shows_what_the_core_shows(
    log: list[ReplyRecord], floors: dict[str, int]
) -> None:
    assert told_by_example(log, floors) == told_by_core(log, floors)
