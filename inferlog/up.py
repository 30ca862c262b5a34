"""`inferlog up`: everything on one machine, kept running until a signal."""

import sys
import time

from inferlog.data_dir import first_key
from inferlog.launch import run_process
from inferlog.local_ports import url_host
from inferlog.settings import UpCommand
from inferlog.stack import Stack
from inferlog.terminal import tell
from runtime.logs import LogSettings
from runtime.service import EXIT_FORCED, EXIT_OK, Lifecycle, signals_to

STOP_SECONDS = 40.0


def report(line: str) -> None:
    """A line of progress, with the time."""
    tell(stamped(line))


def stamped(line: str) -> str:
    """The line with the time of day before it."""
    return f"{time.strftime('%H:%M:%S')}  {line}"


def announce(stack: Stack) -> None:
    """What a user needs to begin: address, a line to try, the key or where it lies, metrics."""
    command = stack.command
    keys = stack.keys_source()
    if keys.get("api_key"):
        key_line = "API key:  the one in INFERLOG_API_KEY"
        shown = "$INFERLOG_API_KEY"
    else:
        path = keys["api_keys_file"]
        key = first_key(path)
        # A key on a terminal is for the eyes of its user; in a file or a pipe it would stay.
        shown = (
            key if sys.stdout.isatty() and key else f"$(sed -n 's/^[^#:]*://p' {path} | head -1)"
        )
        key_line = f"API key:  {key if sys.stdout.isatty() else 'see the file'} ({path})"
    model = command.model.rsplit("/", 1)[-1] if command.model else None
    model = model or ("scripted" if command.engine == "scripted" else "SmolLM2-135M-Instruct")
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
    replicas = ", ".join(stack.replica_url(i) for i in range(command.api_replicas))
    metrics = "  ".join(f"{name} {port}" for name, port in stack.metrics.items())
    print(
        f"\nInferlog is up.\n"
        f"URL:      {stack.url}/v1   (each replica alone: {replicas})\n"
        f"{key_line}\n"
        f"Kafka:    {stack.bootstrap}\n"
        f"Metrics:  http://{url_host(command.metrics_host)}:PORT/metrics   {metrics}\n"
        f"Logs:     {stack.data_dir.path / 'logs'}\n\n"
        f"curl -N {stack.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'  -H "Authorization: Bearer {shown}" \\\n'
        f"  -d '{body}'\n\n"
        "Ctrl-C stops everything.",
        flush=True,
    )


async def live(stack: Stack) -> int:
    """Runs the stack until it is told to stop. Raises CommandFailed."""
    life = Lifecycle(stack, drain_seconds=stack.drain_seconds(), stop_seconds=STOP_SECONDS)

    def signalled() -> None:
        life.signalled()
        stack.forced = life.forced
        report("stopping at once" if life.forced else "stopping (once more: at once)")

    with signals_to(signalled):
        await life.run()
    report("stopped")
    return EXIT_FORCED if life.forced else EXIT_OK


def run(command: UpCommand) -> int:
    """Runs until a signal."""
    stack = Stack(command, report, announce)
    return run_process(lambda: live(stack), LogSettings(level="WARNING"), silent=("aiokafka",))
