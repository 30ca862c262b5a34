"""`inferlog log REQUEST_ID`: a request's life, put together from every topic that speaks of it.

Times, places, numbers and reasons; never what was asked or answered.
"""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime

from inferlog.client_settings import LogCommand
from inferlog.log_reading import open_log
from inferlog.problems import CommandFailed, WrongUsage
from inferlog.terminal import console
from inferlog.timeline import Entry, collect
from runtime.service import EXIT_OK
from schemas.ids import bare_request_id


def run(command: LogCommand) -> int:
    """Prints the timeline; 1 if the log holds nothing of the request."""
    try:
        request_id = bare_request_id(command.request_id.strip())
    except ValueError as error:
        raise WrongUsage(f"{command.request_id!r} is no request id: {error}") from None
    entries = asyncio.run(_collect(command, request_id))
    if not entries:
        raise CommandFailed(
            f"the log holds nothing of {request_id}: it was never accepted here, or longer ago than "
            "the topics keep."
        )
    if command.json:
        shown = [asdict(entry) for entry in entries]
        print(json.dumps({"request_id": request_id, "entries": shown}))
    else:
        print_timeline(request_id, entries)
    return EXIT_OK


async def _collect(command: LogCommand, request_id: str) -> list[Entry]:
    async with open_log(command.reading, "inferlog-log") as log:
        return await collect(log, command.pool, request_id)


def print_timeline(request_id: str, entries: list[Entry]) -> None:
    """As a table."""
    from rich.table import Table  # noqa: PLC0415  (only for a table)

    first_ms = entries[0].time_ms
    began = datetime.fromtimestamp(first_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
    table = Table(
        title=f"{request_id}, from {began.replace('+00:00', ' UTC')}", title_justify="left"
    )
    table.add_column("after", justify="right")
    for name in ("what", "where", "how"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        table.add_row(f"{entry.time_ms - first_ms} ms", entry.what, entry.where, entry.how)
    console().print(table)
