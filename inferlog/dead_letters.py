"""`inferlog dead-letters list|show|redrive|drop`: what could not be run, and what to do about it."""

import asyncio
import json
import sys
from base64 import b64encode
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from core.limits import DEFAULT_LIMITS
from inferlog.letter_settings import DropLetters, ListLetters, RedriveLetters, ShowLetter
from inferlog.letters import Letter, LetterBox, read_letters, read_whole
from inferlog.log_reading import open_log
from inferlog.problems import CommandFailed
from inferlog.redrive import Redriver
from inferlog.terminal import console
from runtime.clock import SystemClock
from runtime.service import EXIT_FAILED, EXIT_OK
from schemas.operations import DeadLetter

CLIENT = "inferlog-dead-letters"


def _facts(letter: Letter) -> dict[str, Any]:
    known = asdict(letter)
    del known["place"]
    return {"letter": letter.address, "state": letter.state, **known}


def _moment(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def _warn(box: LetterBox) -> None:
    if box.cut:
        print("warning: there are more letters than can be shown at once", file=sys.stderr)
    if box.undecodable:
        print(
            f"warning: {box.undecodable} records of this topic are no letters of a version that is "
            "known here",
            file=sys.stderr,
        )


# --- list


def list_letters(command: ListLetters) -> int:
    """Prints the letters that the filters let through, the newest last."""

    async def read() -> LetterBox:
        async with open_log(command.reading, CLIENT) as log:
            return await read_letters(log)

    box = asyncio.run(read())
    _warn(box)
    now_ms = SystemClock().wall_ms()
    found = box.matching(command.filter, now_ms, dropped=command.dropped)
    if command.json:
        print(json.dumps({"letters": [_facts(it) for it in found], "cut": box.cut}))
    elif not found:
        print("no letters")
    else:
        _print_table(found)
    return EXIT_OK


def _print_table(letters: list[Letter]) -> None:
    from rich.table import Table  # noqa: PLC0415  (only for a table)

    table = Table()
    for name in ("letter", "parked (UTC)", "reason", "tenant", "request", "state"):
        table.add_column(name, overflow="fold")
    for it in letters:
        of = it.request_id or it.where
        table.add_row(it.address, _moment(it.parked_ms), it.reason, it.tenant or "-", of, it.state)
    console().print(table)


# --- show


def show_letter(command: ShowLetter) -> int:
    """Prints one letter with its history; what was asked only with `--body`."""

    async def read() -> tuple[Letter, DeadLetter]:
        async with open_log(command.reading, CLIENT) as log:
            letter = (await read_letters(log)).find(command.letter)
            return letter, await read_whole(log, letter)

    letter, whole = asyncio.run(read())
    starts = [{"epoch": it.epoch, "starts": it.starts, "worker": it.worker} for it in whole.starts]
    facts = {**_facts(letter), "starts": starts, "headers": [name for name, _ in whole.headers]}
    if command.body:
        print("warning: what was asked follows; it may be private", file=sys.stderr)
    if command.json:
        if command.body:
            facts["value_base64"] = b64encode(whole.value or b"").decode()
        print(json.dumps(facts))
        return EXIT_OK
    for name in ("letter", "state", "where", "reason", "detail", "request_id", "tenant"):
        print(f"{name.replace('_', ' '):<12} {facts[name] or '-'}")
    print(f"{'parked':<12} {_moment(letter.parked_ms)} UTC, {letter.value_bytes} bytes")
    for new_id in letter.redriven_as:
        print(f"{'redriven':<12} {new_id or 'as it was'}")
    for it in whole.starts:
        print(f"{'start':<12} number {it.starts} by {it.worker} under epoch {it.epoch}")
    print(f"{'headers':<12} {', '.join(facts['headers']) or '-'}")
    if command.body:
        print((whole.value or b"").decode(errors="replace"))
    return EXIT_OK


# --- redrive and drop


def redrive_letters(command: RedriveLetters) -> int:
    """Runs letters again, each as a new request; 1 if one of them could not be."""
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []

    async def act() -> None:
        async with open_log(command.reading, CLIENT) as log:
            box = await read_letters(log)
            now_ms = SystemClock().wall_ms()
            letters = box.chosen(command.letter, command.filter, now_ms, done=command.again)
            redriver = Redriver(log, await log.appender(), command.limits)
            try:
                for letter in letters:
                    end = box.ends[letter.place[0]]
                    try:
                        it = await redriver.redrive(
                            letter, end, again=command.again, raw=command.raw
                        )
                    except CommandFailed as error:
                        failed.append({"letter": letter.address, "error": str(error)})
                    else:
                        done.append({"letter": letter.address, "new_id": it.new_id})
                    if redriver.broken:
                        break
            finally:
                await redriver.close()

    asyncio.run(act())
    if command.json:
        print(json.dumps({"redriven": done, "failed": failed}))
    else:
        for it in done:
            print(f"{it['letter']} runs again as {it['new_id'] or 'it was'}")
        for it in failed:
            print(f"error: {it['error']}", file=sys.stderr)
        if not done and not failed:
            print("no letter to redrive")
    return EXIT_FAILED if failed else EXIT_OK


def drop_letters(command: DropLetters) -> int:
    """Marks letters as needed no more. Dropping one twice changes nothing."""
    dropped: list[str] = []
    before: list[str] = []

    async def act() -> None:
        async with open_log(command.reading, CLIENT) as log:
            box = await read_letters(log)
            now_ms = SystemClock().wall_ms()
            letters = box.chosen(command.letter, command.filter, now_ms, done=True)
            redriver = Redriver(log, await log.appender(), DEFAULT_LIMITS)
            try:
                for letter in letters:
                    new = await redriver.drop(letter)
                    (dropped if new else before).append(letter.address)
            finally:
                await redriver.close()

    asyncio.run(act())
    if command.json:
        print(json.dumps({"dropped": dropped, "dropped_before": before}))
    else:
        for address in dropped:
            print(f"{address} dropped")
        for address in before:
            print(f"{address} was dropped before")
    return EXIT_OK
