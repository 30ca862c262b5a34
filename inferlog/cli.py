"""The `inferlog` command. Every command is one module, imported when it is called."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from inferlog import client_settings as clients
from inferlog import letter_settings as letters
from inferlog import settings as commands
from inferlog.flags import add_command, known_variables
from inferlog.terminal import show_anything
from runtime.settings import unknown_variables


def _lazy(module: str) -> Callable[[Any], int]:
    def run(settings: Any) -> int:
        return int(importlib.import_module(f"inferlog.{module}").run(settings))

    return run


def _action(module: str, action: str) -> Callable[[Any], int]:
    def run(settings: Any) -> int:
        return int(getattr(importlib.import_module(f"inferlog.{module}"), action)(settings))

    return run


TABLE: tuple[tuple[str, type[Any], str], ...] = (
    ("up", commands.UpCommand, "Start Kafka, workers and the API, and keep them running."),
    (
        "demo",
        commands.DemoCommand,
        "See it work: an answer, a small load, a worker killed in mid-sentence.",
    ),
    ("send", clients.SendCommand, "Ask a question; the answer streams into the terminal."),
    ("replay", clients.ReplayCommand, "Replay a recorded hour of traffic, and measure."),
    ("status", clients.StatusCommand, "Tiers, lag, workers and slots, live."),
    ("log", clients.LogCommand, "A request's life as the log tells it."),
    ("doctor", clients.DoctorCommand, "What this machine can run, and what is missing."),
    ("api", commands.ApiCommand, "Run one API replica."),
    ("worker", commands.WorkerCommand, "Run one worker."),
    ("broker", commands.BrokerCommand, "Run a local Kafka."),
)
TOPICS = (
    ("create", "Create what is missing."),
    ("check", "Print how the topics differ from what is needed; exit 1 if they do."),
)
LETTERS: tuple[tuple[str, str, type[Any], str], ...] = (
    ("list", "list_letters", letters.ListLetters, "What was parked, why, and what became of it."),
    ("show", "show_letter", letters.ShowLetter, "One letter with the history of its starts."),
    ("redrive", "redrive_letters", letters.RedriveLetters, "Run it again, as a new request."),
    ("drop", "drop_letters", letters.DropLetters, "Nobody needs it any more: list it no longer."),
)
# The address of the cluster is `--broker`'s business there.
HIDDEN = {"up": ("cluster.bootstrap",)}


def build(only: str | None = None) -> typer.Typer:
    """The whole command line; with `only`, the flags of that command alone, which is quicker."""
    app = typer.Typer(
        name="inferlog",
        help="LLM inference on a Kafka log: an OpenAI-compatible API, durable requests, "
        "resumable streams.",
        no_args_is_help=True,
        add_completion=False,
        # A traceback with local variables would show prompts and keys.
        pretty_exceptions_enable=False,
        # see PanelledCommand; and boxes and colours take a quarter of a second to import
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_before_any)
    for name, settings, summary in TABLE:
        if only in {None, name}:
            run = _lazy(MODULES.get(name, name))
            add_command(app, name, settings, run, summary, hidden=HIDDEN.get(name, ()))
        else:
            app.command(name, help=summary)(_nothing)
    topics = typer.Typer(
        help="Create or check the topics of a cluster.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    for action, summary in TOPICS:
        run = _action("topics", action)
        add_command(topics, action, clients.TopicsCommand, run, summary)
    app.add_typer(topics, name="topics")
    app.add_typer(_dead_letters(), name="dead-letters")
    app.add_typer(_bench(), name="bench")
    return app


def _bench() -> typer.Typer:
    results = typer.Typer(
        help="What the benchmarks found.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    results.callback()(_nothing)  # one command alone would otherwise be the group itself
    run = _action("bench", "compare_results")
    summary = "Two results of one benchmark, figure by figure: better, worse, or noise."
    add_command(results, "compare", clients.CompareCommand, run, summary)
    return results


def _dead_letters() -> typer.Typer:
    parked = typer.Typer(
        help="Requests that could not be run: look, run again, or drop.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    for name, action, settings, summary in LETTERS:
        add_command(parked, name, settings, _action("dead_letters", action), summary)
    return parked


def _nothing() -> None:
    """Stands for a command that was not called."""


MODULES = {"log": "request_log"}


def _version(value: bool | None) -> None:
    if value:
        from importlib.metadata import version  # noqa: PLC0415  (only when asked)

        print(version("inferlog"))
        raise typer.Exit


def _before_any(
    version: bool | None = typer.Option(  # noqa: ARG001  (handled by its callback)
        None, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    all_settings = [settings for _, settings, _ in TABLE] + [
        clients.TopicsCommand,
        clients.CompareCommand,
    ]
    known = known_variables(all_settings + [settings for _, _, settings, _ in LETTERS])
    for line in unknown_variables(os.environ, known):
        print(f"warning: {line}", file=sys.stderr)


def main() -> None:
    """The command line as it was typed."""
    show_anything()
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    build(named[0] if named else "")()
