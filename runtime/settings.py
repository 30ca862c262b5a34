"""Settings: frozen dataclasses, filled once from the environment and from what was typed.

A field's metadata says what it means: `help` (else its name in words), `unit`, `secret=True`, `min`,
`max`, `metavar`; `separator` of a variable that holds several values (else a comma); `env`, its
variable's name after the prefix, when that is not the field's name in capitals. On a field that is
itself a dataclass, `prefix` goes before the variables and flags of its fields.
"""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from runtime.setting_values import check_range, kind_of, parse, show

T = TypeVar("T")

PREFIX = "INFERLOG_"
_MASK = "***"


class SettingsError(ValueError):
    """Values that cannot be used; `problems` has one line for each, all of them at once."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting as help texts, tables and command lines need it.

    `name` is dotted for a field of a nested dataclass, `flag_name` has hyphens; `kind` is a word such
    as `number`; `default` is None when there is none to show, and always for secrets.
    """

    name: str
    flag_name: str
    env: str
    kind: str
    unit: str
    default: str | None
    help: str
    required: bool
    secret: bool
    many: bool
    choices: tuple[str, ...]
    is_switch: bool


def load(
    cls: type[T],
    environ: Mapping[str, str],
    prefix: str = PREFIX,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """Fills `cls`: an override (by dotted name; None means none) wins over its variable, that over
    the default. Text is parsed by the field's type, other values are taken as they are.

    Raises SettingsError with every problem found.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    problems: list[str] = []
    known = {setting.name for setting in describe(cls, prefix)}
    problems += [f"there is no setting {name!r}" for name in given if name not in known]
    filled = _fill(cls, environ, prefix, given, "", problems)
    if problems:
        raise SettingsError(problems)
    return typing.cast("T", filled)


def describe(cls: type[Any], prefix: str = PREFIX) -> list[Setting]:
    """Every setting of `cls`, in the order of its fields, nested ones in place."""
    return [_setting(field, hint, path, env) for field, hint, path, env in _walk(cls, prefix, "")]


def unknown_variables(
    environ: Mapping[str, str], known: Iterable[str], prefix: str = PREFIX
) -> list[str]:
    """One line for each variable with the prefix that nothing reads, with the likeliest meant one."""
    names = sorted(known)
    lines = []
    for name in sorted(environ):
        if name.startswith(prefix) and name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            lines.append(f"{name} is not a setting" + (f"; is {close[0]} meant?" if close else ""))
    return lines


def printable(settings: Any, prefix: str = PREFIX) -> dict[str, str]:
    """Variable -> value as text, in order; secrets that are set are masked."""
    shown = {}
    for field, _, path, env in _walk(type(settings), prefix, ""):
        value = settings
        for part in path.split("."):
            value = getattr(value, part)
        masked = bool(field.metadata.get("secret")) and value not in (None, "", ())
        shown[env] = _MASK if masked else show(value, _separator(field))
    return shown


def to_environ(settings: Any, prefix: str = PREFIX) -> dict[str, str]:
    """The variables that make `load` give the same again, for a child process. Secrets included."""
    variables = {}
    for field, _, path, env in _walk(type(settings), prefix, ""):
        value = settings
        for part in path.split("."):
            value = getattr(value, part)
        default = field.default
        if value is not None and (value != default or default is dataclasses.MISSING):
            variables[env] = show(value, _separator(field))
    return variables


def _separator(field: "dataclasses.Field[Any]") -> str:
    return str(field.metadata.get("separator", ","))


_Found = tuple["dataclasses.Field[Any]", Any, str, str]


def _walk(cls: type[Any], prefix: str, path: str) -> Iterator[_Found]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(hint):
            nested = typing.cast("type[Any]", hint)
            yield from _walk(nested, prefix + field.metadata.get("prefix", ""), f"{name}.")
        else:
            yield field, hint, name, prefix + field.metadata.get("env", field.name.upper())


def _setting(field: "dataclasses.Field[Any]", hint: Any, path: str, env: str) -> Setting:
    meta = field.metadata
    kind, many, choices = kind_of(hint)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None
    if not required and not meta.get("secret"):
        value = field.default
        if value is dataclasses.MISSING:
            value = typing.cast("Callable[[], Any]", field.default_factory)()
        default = None if value is None else show(value)
    return Setting(
        name=path,
        flag_name=env.removeprefix(PREFIX).lower().replace("_", "-"),
        env=env,
        kind=meta.get("metavar", kind),
        unit=meta.get("unit", ""),
        default=default,
        help=meta.get("help", path.rpartition(".")[2].replace("_", " ")),
        required=required,
        secret=bool(meta.get("secret")),
        many=many,
        choices=choices,
        is_switch=kind == "switch",
    )


def _fill(
    cls: type[Any],
    environ: Mapping[str, str],
    prefix: str,
    given: Mapping[str, Any],
    path: str,
    problems: list[str],
) -> Any:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    before = len(problems)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(hint):
            inner = prefix + field.metadata.get("prefix", "")
            nested = typing.cast("type[Any]", hint)
            values[field.name] = _fill(nested, environ, inner, given, f"{name}.", problems)
            continue
        env = prefix + field.metadata.get("env", field.name.upper())
        raw: Any = given.get(name, environ.get(env))
        source = f"--{env.removeprefix(PREFIX).lower().replace('_', '-')}" if name in given else env
        if raw is None or (raw == "" and name not in given):
            if field.default is dataclasses.MISSING and (
                field.default_factory is dataclasses.MISSING
            ):
                problems.append(f"{env} is not set: {field.metadata.get('help', name)}")
            continue
        try:
            value = parse(hint, raw, _separator(field)) if isinstance(raw, str | list) else raw
            check_range(value, field.metadata)
        except ValueError as error:
            shown = "" if field.metadata.get("secret") else f"={raw}"
            problems.append(f"{source}{shown}: {error}")
            continue
        values[field.name] = value
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(str(error))
        return None
