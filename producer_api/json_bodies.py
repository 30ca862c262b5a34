"""From the bytes of a body to a typed value, or to a refusal that says where the fault lies.

No message repeats what the client wrote, but for the name of an unknown field.
"""

import re
from typing import Any, TypeVar

import msgspec

from core.errors import Refusal
from core.limits import Limits

T = TypeVar("T")

NAME_CHARS_SHOWN = 64

# A string that never ends matches too, up to the end: otherwise each quote in it would start a search
# of its own, and the time would grow with the square of the length.
_TOKENS = re.compile(rb'("(?:[^"\\]|\\.)*+(?:"|\Z))(\s*+:)?|[\[\]{}]', re.DOTALL)

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_EXPECTED = re.compile(r"Expected `(.*?)`, got `(.*?)`")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_GOT = {**_WORDS, "bool": "a boolean"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode_body(data: bytes, decoder: "msgspec.json.Decoder[T]", limits: Limits) -> T:
    """Decodes a client's JSON. Raises Refusal `invalid_json`, `invalid_request`, `unknown_parameter`."""
    if not data:
        raise Refusal("invalid_json", "The body is empty: send a JSON object.")
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise Refusal(
                "invalid_json", f"The body is not valid UTF-8 (byte {error.start})."
            ) from None
    _scan(data, limits.json_depth)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _validation(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("invalid_json", _malformed(str(error), data)) from None


def decode_nested(
    data: bytes, decoder: "msgspec.json.Decoder[T]", limits: Limits, within: str
) -> T:
    """The same for a value inside a body; faults are told with the path that leads to it."""
    try:
        return decode_body(data, decoder, limits)
    except Refusal as refusal:
        if refusal.param is None:
            raise
        param = f"{within}.{refusal.param}"
        message = refusal.message.replace(f"'{refusal.param}'", f"'{param}'")
        raise Refusal(refusal.code, message, param=param) from None


def _scan(data: bytes, depth_max: int) -> None:
    """Depth and repeated keys, before anything is built from the bytes.

    The last of two equal keys would win here, the first one elsewhere: such a body means two things.
    """
    depth = 0
    keys: list[set[bytes]] = []
    for token in _TOKENS.finditer(data):
        text, is_key = token.groups()
        if text is not None:
            if is_key and keys:
                if text in keys[-1]:
                    raise Refusal("invalid_json", "The body has the same key twice in one object.")
                keys[-1].add(text)
            continue
        if token[0] in b"{[":
            depth += 1
            keys.append(set())
            if depth > depth_max:
                raise Refusal("invalid_json", f"The body is nested deeper than {depth_max} levels.")
        else:
            depth -= 1
            if keys:
                keys.pop()


def _malformed(text: str, data: bytes) -> str:
    where = re.search(r"\(byte \d+\)", text)
    # half a surrogate pair before the end of a string is told as an end of the data
    halved = "truncated" in text and data.rstrip().endswith(b"}") and _SURROGATE.search(data)
    if "surrogate" in text or halved:
        return "The body has a lone surrogate, which is not text."
    if "truncated" in text:
        return "The body is not valid JSON: it ends too early."
    return f"The body is not valid JSON {where[0]}." if where else "The body is not valid JSON."


def _validation(text: str) -> Refusal:
    reason, _, place = text.rpartition(" - at `$")
    if not reason:
        reason, place = text, ""
    path = place.rstrip("`").lstrip(".")
    if found := _UNKNOWN.fullmatch(reason):
        name = "".join(c if c.isprintable() else "?" for c in found[1][:NAME_CHARS_SHOWN])
        param = f"{path}.{name}" if path else name
        return Refusal("unknown_parameter", f"Unknown parameter: '{param}'.", param=param)
    if found := _MISSING.fullmatch(reason):
        param = f"{path}.{found[1]}" if path else found[1]
        return Refusal("invalid_request", f"'{param}' is required.", param=param)
    subject = f"'{path}'" if path else "The body"
    if found := _EXPECTED.fullmatch(reason):
        wanted = " or ".join(_WORDS.get(word, word) for word in found[1].split(" | "))
        got = _GOT.get(found[2], found[2])
        message = f"{subject} must be {wanted}, not {got}."
    elif "out of range" in reason:
        message = f"{subject} is a number out of range."
    elif "surrogate" in reason:
        message = f"{subject} has a lone surrogate, which is not text."
    else:
        message = f"{subject} is not valid."
    return Refusal("invalid_request", message, param=path or None)


def make_decoder(kind: type[T]) -> "msgspec.json.Decoder[T]":
    """A decoder to keep: it holds no state between calls."""
    decoder: Any = msgspec.json.Decoder(kind)
    return decoder  # type: ignore[no-any-return]
