"""Values of settings: which types there are, how they are typed, and how they are shown."""

import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def show(value: Any, separator: str = ",") -> str:
    """A value as it would be typed."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    if isinstance(value, tuple):
        return separator.join(map(show, value))
    return str(value)


def check_range(value: Any, meta: Mapping[str, Any]) -> None:
    """Raises ValueError unless a number, or each of several, lies within `min` and `max`."""
    low, high = meta.get("min"), meta.get("max")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if low is not None and number < low:
                raise ValueError(f"at least {low} is needed")
            if high is not None and number > high:
                raise ValueError(f"at most {high} is possible")


def kind_of(hint: Any) -> tuple[str, bool, tuple[str, ...]]:
    """A word for the type, whether it takes several values, and the choices if they are listed."""
    inner = not_optional(hint)
    origin = typing.get_origin(inner)
    if origin is tuple:
        word, _, choices = kind_of(typing.get_args(inner)[0])
        return word, True, choices
    if origin is typing.Literal:
        return "choice", False, tuple(map(str, typing.get_args(inner)))
    words = {int: "number", float: "number", bool: "switch", str: "text", Path: "path"}
    if inner not in words:
        raise TypeError(f"settings cannot hold {inner!r}")
    return words[inner], False, ()


def not_optional(hint: Any) -> Any:
    """The type itself where None may be given as well."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        inner = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return hint


def parse(hint: Any, raw: str | list[str], separator: str = ",") -> Any:
    """Reads what was typed as a value of the type. Raises ValueError with what is expected."""
    inner = not_optional(hint)
    if typing.get_origin(inner) is tuple:
        texts = raw.split(separator) if isinstance(raw, str) else raw
        element = typing.get_args(inner)[0]
        return tuple(parse(element, text.strip()) for text in texts if text.strip())
    if isinstance(raw, list):
        raise ValueError("one value is expected")  # noqa: TRY004  (a typed value)
    if typing.get_origin(inner) is typing.Literal:
        choices = typing.get_args(inner)
        if raw not in choices:
            raise ValueError(f"one of {', '.join(map(str, choices))} is expected")
        return raw
    return _PARSERS[inner](raw)


def _parse_int(raw: str) -> int:
    try:
        return int(raw.replace("_", ""))
    except ValueError:
        raise ValueError("a whole number is expected") from None


def _parse_float(raw: str) -> float:
    try:
        number = float(raw.replace("_", ""))
    except ValueError:
        raise ValueError("a number is expected") from None
    if not math.isfinite(number):
        raise ValueError("a finite number is expected")
    return number


def _parse_bool(raw: str) -> bool:
    if raw.lower() in _TRUE:
        return True
    if raw.lower() in _FALSE:
        return False
    raise ValueError("true or false is expected")


_PARSERS: dict[Any, Callable[[str], Any]] = {
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
    str: str,
    Path: lambda raw: Path(raw).expanduser(),
}
