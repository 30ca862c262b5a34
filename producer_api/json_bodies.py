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
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)


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
    """Counts brackets outside of strings."""
    depth = 0
    for token in _TOKENS.finditer(raw):
        mark = raw[token.start()]
        if mark in b"{[":
            depth += 1
            if depth > most:
                raise Refusal("invalid_json", f"The body may be at most {most} levels deep.")
        elif mark in b"}]":
            depth -= 1


def fingerprint(endpoint: str, data: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical payload, for idempotency."""
    canonical = msgspec.json.encode([endpoint, data], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()
