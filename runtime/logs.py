"""Structured logs on standard error: one JSON object a line, or readable lines on a terminal.

What clients wrote and what they sign with never belongs here: callers log ids, numbers and reasons.
Secrets that are known at the start are masked all the same, should an error text quote one.
"""

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Format = Literal["auto", "json", "human"]

_STANDARD = frozenset(
    vars(logging.LogRecord("", 0, "", 0, "", (), None))
    | {"message": "", "asctime": "", "taskName": ""}
)
_EVENT_CHARS_MAX = 8192
_MASK = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How a process logs."""

    level: Level = field(
        default="INFO", metadata={"help": "the least important level to log", "env": "LOG_LEVEL"}
    )
    format: Format = field(
        default="auto",
        metadata={
            "help": "json, or human-readable lines; auto: readable on a terminal",
            "env": "LOG_FORMAT",
        },
    )


class JsonFormatter(logging.Formatter):
    """`ts`, `level`, `logger`, `event`, whatever was given as `extra`, and `error` with its trace."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if len(secret) >= 6)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The line as a mapping, secrets masked."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": self._masked(record.getMessage())[:_EVENT_CHARS_MAX],
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None:
                line[name] = value if isinstance(value, int | float) else self._masked(str(value))
        if record.exc_info:
            line["error"] = self._masked(self.formatException(record.exc_info))
        return line

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        return json.dumps(self.fields(record), ensure_ascii=False)

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text


class HumanFormatter(JsonFormatter):
    """The same for eyes: time of day, level, event, and the extras behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the trace of an error below it."""
        line = self.fields(record)
        extras = {
            name: value
            for name, value in line.items()
            if name not in {"ts", "level", "logger", "event", "error"}
        }
        shown = "".join(f"  {name}={value}" for name, value in extras.items())
        trace = f"\n{line['error']}" if "error" in line else ""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        return f"{time} {line['level']:<8} {line['logger']}: {line['event']}{shown}{trace}"


def configure(
    settings: LogSettings | None = None,
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Sends all logs of this process to `stream` (standard error). Replaces what was set up before."""
    settings = settings or LogSettings()
    target = stream or sys.stderr
    human = settings.format == "human" or (settings.format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanFormatter(secrets) if human else JsonFormatter(secrets))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level)
    logging.captureWarnings(capture=True)
    # They repeat what we say ourselves, or log every request.
    for noisy in ("uvicorn.access", "aiokafka", "httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(
            max(logging.getLevelName(settings.level), logging.WARNING)
        )
