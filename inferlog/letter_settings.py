"""The settings of `inferlog dead-letters`."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from core.limits import DEFAULT_LIMITS, Limits
from inferlog.client_settings import LogReadingSettings
from inferlog.settings import JSON, LIMITS

ALL = "all"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LETTER = "a letter: its place (partition/offset), or the id of its request"


def since_ms(text: str | None, now_ms: int) -> int:
    """The time that `--since` names, in milliseconds since 1970. Raises ValueError."""
    if text is None:
        return 0
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text.strip()):
        return now_ms - int(match[1]) * _UNITS[match[2]] * 1000
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"since: a time ago such as 90m, 12h or 7d, or a date and time, not {text!r}"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters are meant."""

    reason: str | None = field(
        default=None, metadata={"help": "only letters with this reason, such as poison"}
    )
    tenant: str | None = field(default=None, metadata={"help": "only letters of this tenant"})
    request_id: str | None = field(default=None, metadata={"help": "only letters of this request"})
    since: str | None = field(
        default=None,
        metadata={
            "help": "only letters parked since then: 90m, 12h, 7d ago, or a date and time (UTC)",
            "metavar": "time",
        },
    )
    limit: int = field(
        default=50, metadata={"help": "at most so many, the newest", "min": 1, "max": 10_000}
    )

    def __post_init__(self) -> None:
        since_ms(self.since, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListLetters:
    """`inferlog dead-letters list`."""

    filter: LetterFilter
    reading: LogReadingSettings
    dropped: bool = field(default=False, metadata={"help": "those that were dropped as well"})
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowLetter:
    """`inferlog dead-letters show`."""

    letter: str = field(metadata={"help": _LETTER, "positional": True})
    reading: LogReadingSettings
    body: bool = field(
        default=False,
        metadata={"help": "what was asked as well, which may be private: it is left out otherwise"},
    )
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveLetters:
    """`inferlog dead-letters redrive`."""

    letter: str = field(
        metadata={"help": f"{_LETTER}; or {ALL}: those that the filters name", "positional": True}
    )
    filter: LetterFilter
    reading: LogReadingSettings
    again: bool = field(
        default=False, metadata={"help": "also what was redriven or dropped before"}
    )
    raw: bool = field(
        default=False,
        metadata={
            "help": "publish the record's bytes as they are, under its old id: for what this version "
            "cannot decode"
        },
    )
    json: bool = field(default=False, metadata=JSON)
    limits: Limits = field(default=DEFAULT_LIMITS, metadata=LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropLetters:
    """`inferlog dead-letters drop`."""

    letter: str = field(
        metadata={"help": f"{_LETTER}; or {ALL}: those that the filters name", "positional": True}
    )
    filter: LetterFilter
    reading: LogReadingSettings
    json: bool = field(default=False, metadata=JSON)
