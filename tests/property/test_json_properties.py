"""A body's depth is bounded whatever it holds, and what is no deeper is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Refusal
from core.limits import Limits
from producer_api.json_bodies import parse_json

TEXTS = st.text(alphabet='[]{}"\\a\n', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda it: st.lists(it, max_size=4) | st.dictionaries(TEXTS, it, max_size=3),
    max_leaves=40,
)


def depth_of(value: Any) -> int:
    inner = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    )
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(VALUES, st.integers(1, 6))
def test_what_is_too_deep_is_refused_and_all_else_is_read(value: Any, most: int) -> None:
    data = {"a": value}
    raw, limits = json.dumps(data).encode(), Limits(json_depth=most)
    if depth_of(data) > most:
        with pytest.raises(Refusal, match=f"at most {most} levels deep"):
            parse_json(raw, limits)
    else:
        assert parse_json(raw, limits) == data


@given(st.text(alphabet='[]{}",:1\\', max_size=200))
def test_what_is_no_json_is_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(Refusal):
            parse_json(text.encode(), Limits(json_depth=4))
    else:
        if not isinstance(expected, dict):
            with pytest.raises(Refusal):
                parse_json(text.encode(), Limits(json_depth=4))
