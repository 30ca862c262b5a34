"""Request ids carry their time and their reply partition, and nothing else is taken for one."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import IdParts, bare_request_id, make_request_id, parse_request_id

TIMES = st.integers(0, 2**48 - 1)
PARTITIONS = st.integers(0, 4095)
RANDOM = st.integers(0, 2**62 - 1)


@given(TIMES, PARTITIONS, RANDOM)
def test_an_id_says_what_went_into_it(time_ms: int, partition: int, random_62: int) -> None:
    text = make_request_id(time_ms, partition, random_62)
    assert parse_request_id(text) == IdParts(time_ms, partition)
    standard = uuid.UUID(text)
    assert (str(standard), standard.version, standard.variant) == (text, 7, uuid.RFC_4122)
    assert standard.int & (2**62 - 1) == random_62


@given(st.tuples(TIMES, PARTITIONS, RANDOM), st.tuples(TIMES, PARTITIONS, RANDOM))
def test_ids_sort_as_their_parts(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (make_request_id(*one) < make_request_id(*other)) == (one < other)


@given(TIMES, PARTITIONS, RANDOM, st.sampled_from(["", "chatcmpl-", "cmpl-", "resp_"]))
def test_every_public_form_leads_to_the_bare_id(
    time_ms: int, partition: int, random_62: int, prefix: str
) -> None:
    text = make_request_id(time_ms, partition, random_62)
    assert bare_request_id(prefix + text) == text


@given(st.one_of(st.text(max_size=60), st.uuids().map(str)))
def test_whatever_is_no_id_raises_value_error(text: str) -> None:
    try:
        parts = parse_request_id(text)
    except ValueError:
        return
    assert uuid.UUID(text).version == 7
    assert uuid.UUID(text).int >> 80 == parts.time_ms


@given(TIMES, PARTITIONS, RANDOM, st.sampled_from([str.upper, "{}\n".format, " {}".format]))
def test_variants_of_an_id_are_refused(
    time_ms: int, partition: int, random_62: int, change: "object"
) -> None:
    text = make_request_id(time_ms, partition, random_62)
    assert callable(change)
    changed = change(text)
    if changed != text:
        with pytest.raises(ValueError, match="UUIDv7"):
            parse_request_id(changed)


@pytest.mark.parametrize("parts", [(-1, 0, 0), (2**48, 0, 0), (0, 4096, 0), (0, 0, 2**62)])
def test_what_does_not_fit_its_field_is_refused(parts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="fit"):
        make_request_id(*parts)
