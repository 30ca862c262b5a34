"""The bytes of a body as a JSON object, bounded before anything is built from them."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from core.errors import Refusal
from core.limits import Limits

# A string that never ends matches too, up to the end: otherwise each quote in it would begin a search
# of its own, and the time would grow with the square of the length.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_MARKS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(it for it in range(256) if it not in b"{}[]")


def parse_json(raw: bytes, limits: Limits) -> dict[str, Any]:
    """The body as an object. Raises Refusal `invalid_json`; depth is bounded before it is walked."""
    if raw.count(b"{") + raw.count(b"[") > limits.json_depth:
        _check_depth(raw, limits.json_depth)
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal("invalid_json", "The body is not valid JSON in UTF-8.") from None
    if not isinstance(data, dict):
        raise Refusal("invalid_json", "The body must be a JSON object.")
    return data


def _check_depth(raw: bytes, most: int) -> None:
    """Takes the innermost brackets away, level by level; a level is a few passes over bytes, not a loop.

    What then still pairs is too deep. What does not pair is no JSON, and the parser says so: but not of so
    many open brackets that it could lose itself in them.
    """
    marks = _STRINGS.sub(b"", raw).translate(_MARKS, _OTHERS)
    for _ in range(most):
        if b"[]" not in marks:
            break
        marks = marks.replace(b"[]", b"")
    if b"[]" in marks or marks.count(b"[") > most:
        raise Refusal("invalid_json", f"The body may be at most {most} levels deep.")


def fingerprint(endpoint: str, data: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical payload, for idempotency."""
    canonical = msgspec.json.encode([endpoint, data], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()
