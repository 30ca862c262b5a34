"""Recorded traffic: arrival times and lengths, read from a CSV; and synthetic prompts of a length."""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from inferlog.problems import WrongUsage

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
ROWS_MAX = 1_000_000

# Short, common words: most tokenisers have each of them as one token.
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "that",
    "with",
    "as",
    "it",
    "by",
    "are",
    "from",
    "at",
    "his",
    "be",
    "this",
    "have",
    "or",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
    "people",
    "my",
    "made",
    "over",
    "did",
    "down",
    "only",
    "way",
    "find",
    "use",
    "may",
    "water",
    "long",
    "little",
    "very",
    "after",
    "words",
    "called",
    "just",
    "where",
    "most",
    "know",
]


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded request: seconds after the first one, and its lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_trace(
    path: Path,
    *,
    rows: int | None = None,
    prompt_tokens_max: int | None = None,
    output_tokens_max: int | None = None,
) -> list[Row]:
    """The (first) rows in order of time, lengths clipped, each at least 1. Raises WrongUsage."""
    found: list[Row] = []
    first: datetime | None = None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise WrongUsage(f"{path} has no column {', '.join(missing)}: is it a trace?")
            for line in reader:
                moment = _moment(line["TIMESTAMP"])
                first = first or moment
                prompt, output = int(line["ContextTokens"]), int(line["GeneratedTokens"])
                found.append(
                    Row(
                        (moment - first).total_seconds(),
                        max(1, min(prompt, prompt_tokens_max or prompt)),
                        max(1, min(output, output_tokens_max or output)),
                    )
                )
                if len(found) == min(rows or ROWS_MAX, ROWS_MAX):
                    break
    except FileNotFoundError:
        raise WrongUsage(f"there is no file {path}") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise WrongUsage(f"{path}, row {len(found) + 1}, cannot be read: {error}") from None
    if not found:
        raise WrongUsage(f"{path} has no rows")
    return sorted(found, key=lambda row: row.at_s)


def _moment(text: str) -> datetime:
    # seven digits of a second; Python takes six
    return datetime.fromisoformat(text.strip()[:26])


def synthetic_prompt(number: int, words: int, run: str) -> str:
    """A prompt of `words` words, unlike that of any other number or run from its first word on.

    A shared beginning would be found in the engine's prefix cache, and flatter it.
    """
    chosen = random.Random(f"{run}/{number}")
    return " ".join([f"{run}{number}", *chosen.choices(_WORDS, k=max(0, words - 1))])


@dataclass(frozen=True, slots=True)
class Rates:
    """What a server was measured to do, tokens per second over all streams; None: beyond measure."""

    prefill: float | None
    decode: float | None


def fitting_stretch(rows: Sequence[Row], rates: Rates, utilisation: float = 0.7) -> float:
    """The factor on the trace's time at which these rates are used to `utilisation`; at least 1."""
    duration_s = max(rows[-1].at_s, 0.001)
    work_s = 0.0
    if rates.prefill:
        work_s += sum(row.prompt_tokens for row in rows) / rates.prefill
    if rates.decode:
        work_s += sum(row.output_tokens for row in rows) / rates.decode
    return max(1.0, work_s / (utilisation * duration_s))
