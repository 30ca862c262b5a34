"""Turns settings into commands: every field a flag, with its variable, unit and default in `--help`.

Values reach `runtime.settings` as they were typed, so that a flag and its variable are read by the
same rules and every problem is told at once.
"""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from core.errors import InferlogError
from inferlog.problems import CommandFailed, WrongUsage
from runtime.service import EXIT_FAILED, EXIT_FORCED
from runtime.settings import PREFIX, Setting, SettingsError, describe, load

PANELS = {
    "cluster": "Kafka",
    "limits": "Limits",
    "topics": "Topics",
    "log": "Log files and messages",
    "client": "Which API",
    "reading": "Which cluster",
}


class PanelledCommand(TyperCommand):
    """Help in panels, as plain text: boxes would cut the names of variables on a narrow terminal."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then options by the panel that `_annotation` gave them."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def add_command(
    app: typer.Typer,
    name: str,
    settings: type[Any],
    run: Callable[[Any], int],
    summary: str,
    *,
    hidden: Collection[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Registers `name`: flags from `settings`, then `run(loaded settings)` and its exit code.

    `hidden` names settings that make no sense as flags of this command.
    """
    described = [it for it in describe(settings) if it.name not in hidden]
    positional = {
        field.name for field in dataclasses.fields(settings) if field.metadata.get("positional")
    }
    by_parameter = {it.name.replace(".", "_"): it for it in described if not it.secret}
    parameters = [
        inspect.Parameter(
            parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if it.name in positional else None,
            annotation=_annotation(it, positional=it.name in positional),
        )
        for parameter, it in by_parameter.items()
    ]

    def command(**typed: Any) -> None:
        overrides = {
            by_parameter[parameter].name: value
            for parameter, value in typed.items()
            if value is not None and value != []
        }
        raise typer.Exit(_run(settings, run, overrides, environ))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {it.name: it.annotation for it in parameters}
    app.command(name, cls=PanelledCommand, help=summary, epilog=_epilog(described))(command)


def _run(
    settings: type[Any],
    run: Callable[[Any], int],
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
) -> int:
    try:
        try:
            loaded = load(settings, environ, overrides=overrides)
        except SettingsError as error:
            raise WrongUsage("\n       ".join(error.problems)) from None
        return run(loaded)
    except InferlogError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CommandFailed) else EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_FORCED
    except BrokenPipeError:
        # the reader of our output went away, as `head` does: nothing is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _annotation(it: Setting, *, positional: bool) -> Any:
    if positional:
        return Annotated[str, typer.Argument(help=it.help, show_default=False)]
    parts = it.name.split(".")
    panel = next((PANELS[part] for part in reversed(parts[:-1]) if part in PANELS), "Options")
    kind: Any = str | None
    declaration = f"--{it.flag_name}"
    if it.is_switch:
        kind = bool | None
        declaration = f"--{it.flag_name}/--no-{it.flag_name}"
    elif it.many:
        kind = list[str] | None
    return Annotated[
        kind,
        typer.Option(
            declaration,
            help=_help(it),
            metavar=None if it.is_switch else _metavar(it),
            show_default=False,
            rich_help_panel=panel,
        ),
    ]


def _metavar(it: Setting) -> str:
    return "|".join(it.choices) if it.choices else it.kind.upper()


def _help(it: Setting) -> str:
    facts = [it.unit] if it.unit else []
    facts.append(f"default: {it.default}" if it.default not in (None, "") else "default: none")
    facts.append(it.env)
    return f"{it.help} ({'; '.join(facts)})"


def _epilog(described: list[Setting]) -> str:
    lines = ["Each flag may also be set as the variable behind it; the flag wins."]
    secrets = [f"{it.env} ({it.help})" for it in described if it.secret]
    if secrets:
        lines.append("Secrets only as variables, as others can read command lines: ")
        lines[-1] += ", ".join(secrets) + "."
    lines.append(
        "Downloads (Kafka, the small model) lie in INFERLOG_CACHE_DIR (default: inferlog in "
        "$XDG_CACHE_HOME or ~/.cache)."
    )
    lines.append("Exit codes: 0 done; 1 failed; 2 what was typed cannot work; 130 interrupted.")
    return " ".join(lines)


def known_variables(commands: list[type[Any]]) -> set[str]:
    """Every variable that some command, or what it starts, reads."""
    names = ("CACHE_DIR", "JAVA", "PARENT_PID", "METRICS_PORT_HELD")
    own = {f"{PREFIX}{name}" for name in names}
    found = {it.env for command in commands for it in describe(command) if not it.required}
    return own | found
