"""Every record comes back as it was written; whatever else is read raises one error only."""

import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.fences import Acquired, Fenced, Still
from schemas.operations import Claim, Control, DeadLetter, LetterMark, Usage, WorkerState
from schemas.replies import Accepted, Choice, Events, Fence
from schemas.requests import Request

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: FLOATS,
    bool: st.booleans(),
    str: TEXT,
    bytes: st.binary(max_size=12),
    type(None): st.none(),
    Any: JSON,
    Choice: st.integers(0, (1 << 16) - 1),
}
RECORDS: dict[Any, Callable[[bytes | None], Any]] = {
    Request: codec.decode_request,
    Accepted: codec.decode_reply,
    Fence: codec.decode_reply,
    Events: codec.decode_reply,
    Acquired: codec.decode_fence,
    Fenced: codec.decode_fence,
    Still: codec.decode_fence,
    Claim: codec.decode_claim,
    Control: codec.decode_control,
    Usage: codec.decode_usage,
    WorkerState: codec.decode_worker,
    DeadLetter: codec.decode_letter,
    LetterMark: codec.decode_letter,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may hold."""
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([values_of(each) for each in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    hints = typing.get_type_hints(hint, include_extras=True)
    return st.builds(
        hint, **{field.name: values_of(hints[field.name]) for field in msgspec.structs.fields(hint)}
    )


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_record_comes_back_as_it_was_written(kind: Any) -> None:
    @given(values_of(kind))
    def comes_back(record: Any) -> None:
        data = codec.encode(record)
        again = RECORDS[kind](data)
        assert again == record
        assert type(again) is kind
        assert codec.encode(again) == data

    comes_back()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_damaged_record_is_undecodable_or_another_record(kind: Any) -> None:
    @given(values_of(kind), st.integers(0), st.binary(min_size=1, max_size=3))
    def damaged(record: Any, place: int, garbage: bytes) -> None:
        data = codec.encode(record)
        place %= len(data)
        only_undecodable(RECORDS[kind], data[:place] + garbage + data[place + 1 :])
        only_undecodable(RECORDS[kind], data[:place])

    damaged()


def only_undecodable(decode: Callable[[bytes | None], Any], data: bytes) -> None:
    try:
        record = decode(data)
    except codec.UndecodableRecord:
        return
    assert isinstance(record, msgspec.Struct)


@given(st.binary(max_size=60) | JSON.map(msgspec.json.encode))
def test_garbage_raises_undecodable_alone(data: bytes) -> None:
    for decode in RECORDS.values():
        with pytest.raises(codec.UndecodableRecord):
            decode(data)


def test_no_value_too_much_and_too_deep_are_undecodable() -> None:
    for data in (None, b" " * (codec.RECORD_BYTES_MAX + 1), b"[" * 100_000, b'{"body":' * 100_000):
        with pytest.raises(codec.UndecodableRecord):
            codec.decode_request(data)


def test_a_choice_that_readers_cannot_count_is_undecodable() -> None:
    """They keep a count for each up to it: one below nothing, or a billion, would end them all."""
    event = (
        b'{"record":"events","events":[{"kind":"tokens","id":"i","tenant":"t","q":"q/0","offset":0,'
        b'"epoch":0,"seq":0,"token_ids":[1],"text":"","choice":%d}]}'
    )
    assert codec.decode_reply(event % 7)
    for choice in (-1, 1 << 16, 10**9):
        with pytest.raises(codec.UndecodableRecord):
            codec.decode_reply(event % choice)


@given(st.binary(max_size=60) | JSON.map(msgspec.json.encode) | st.none())
def test_garbage_is_foreign_to_replies(data: bytes | None) -> None:
    assert codec.is_foreign(data)


def test_what_a_newer_writer_may_have_said_is_not_foreign() -> None:
    for data in (
        b'{"record":"new"}',
        b'{"record":"events","v":2}',
        b'{"more":[],"record":"fence"}',
    ):
        assert not codec.is_foreign(data)
