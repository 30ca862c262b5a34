"""Makes the engine that settings name: its kind, its model, and its options as `KEY=VALUE` texts.

Engines are imported here, when they are wanted, and nowhere else: a worker with the scripted engine
runs without vLLM being installed.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from consumers.inference.engine.ports import Engine
from core.errors import InferlogError

ENGINES = ("vllm", "scripted")

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


class EngineOptionError(InferlogError):
    """The engine's settings cannot be used; the message says which one, and what would do."""


def make_engine(kind: str, model: str | None, options: Sequence[str] = ()) -> Engine:
    """The engine `kind` (`vllm` or `scripted`), not started yet.

    `model` is what vLLM loads (a folder or a model's name), or the name that the scripted engine
    goes by. Each option is `KEY=VALUE`. Raises EngineOptionError.
    """
    if kind == "scripted":
        from consumers.inference.engine.scripted import ScriptedEngine, ScriptedOptions

        found = parse_options(options, typed_fields(ScriptedOptions))
        try:
            chosen = ScriptedOptions(**found)
        except ValueError as error:
            raise EngineOptionError(f"scripted engine: {error}") from None
        return ScriptedEngine(model or "scripted", chosen)
    if kind == "vllm":
        if not model:
            raise EngineOptionError("the vllm engine needs a model: a folder, or a model's name")
        try:
            from consumers.inference.engine.vllm import make_vllm_engine
        except ImportError as error:
            raise EngineOptionError(
                f"the vllm engine cannot be imported ({error}); install the extra `cpu` or `gpu`"
            ) from error
        return make_vllm_engine(model, options)
    raise EngineOptionError(f"unknown engine {kind!r}; there are: {', '.join(ENGINES)}")


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

    JSON objects and lists are taken where the type is neither a number, a truth value nor text.
    """
    origin = get_origin(wanted)
    if origin is Literal:
        for choice in get_args(wanted):
            if text == str(choice):
                return choice
        raise _bad(key, text, f"one of {', '.join(map(str, get_args(wanted)))}")
    if origin in (Union, types.UnionType):
        return _parse_union(key, text, get_args(wanted))
    if wanted is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise _bad(key, text, "true or false")
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            kind = "a whole number" if wanted is int else "a number"
            raise _bad(key, text, kind) from None
    if wanted is type(None):
        if text.lower() in ("none", "null"):
            return None
        raise _bad(key, text, "none")
    if wanted is str:
        return text
    return _parse_json(key, text)


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


def _parse_json(key: str, text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise _bad(key, text, "JSON") from None


def _bad(key: str, text: str, wanted: str) -> EngineOptionError:
    return EngineOptionError(f"engine option {key}={text} must be {wanted}")
