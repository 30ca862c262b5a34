"""What a replay found: percentiles, tokens per second, and what was lost or came twice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from inferlog.terminal import console
from inferlog.trace import Row

PERCENTILES = (50, 95, 99)


@dataclass(slots=True)
class Outcome:
    """One request: when it was due, began, and ended (monotonic seconds), and what was wrong."""

    due_s: float
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    output_tokens: int = 0
    lost: int = 0
    repeated: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`lost` and `repeated` count requests with such tokens; times are seconds at p50, p95, p99."""

    model: str
    requests: int
    completed: int
    failed: dict[str, int]
    lost: int
    repeated: int
    delayed: int
    stretch: float
    prompt_tokens_max: int
    output_tokens_max: int
    seconds: float
    output_tokens: int
    tokens_per_second: float
    ttft_seconds: dict[str, float] = field(default_factory=dict)
    time_per_output_token_seconds: dict[str, float] = field(default_factory=dict)
    end_to_end_seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For a script."""
        return asdict(self)

    def flawless(self) -> bool:
        """Every request ended well, with every token once."""
        return not (self.lost or self.repeated or self.failed)


def summarise(
    outcomes: Sequence[Outcome],
    rows: Sequence[Row],
    model: str,
    stretch: float,
    seconds: float,
    delayed: int,
) -> Summary:
    """The figures of a replay of `rows` that took `seconds`."""
    done = [it for it in outcomes if it.error is None]
    first = [it.first_s - it.due_s for it in done if it.first_s is not None]
    end = [it.end_s - it.due_s for it in done if it.end_s is not None]
    between = [
        (it.last_s - it.first_s) / (it.output_tokens - 1)
        for it in done
        if it.first_s is not None and it.last_s is not None and it.output_tokens > 1
    ]
    tokens = sum(it.output_tokens for it in outcomes)
    return Summary(
        model=model,
        requests=len(outcomes),
        completed=len(done),
        failed=dict(Counter(it.error for it in outcomes if it.error is not None)),
        # a row without an outcome would be a request nobody waited for
        lost=sum(1 for it in outcomes if it.lost) + len(rows) - len(outcomes),
        repeated=sum(1 for it in outcomes if it.repeated),
        delayed=delayed,
        stretch=round(stretch, 3),
        prompt_tokens_max=max(row.prompt_tokens for row in rows),
        output_tokens_max=max(row.output_tokens for row in rows),
        seconds=round(seconds, 3),
        output_tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        ttft_seconds=_percentiles(first),
        time_per_output_token_seconds=_percentiles(between),
        end_to_end_seconds=_percentiles(end),
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{it}": round(percentile(values, it), 6) for it in PERCENTILES} if values else {}


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def print_table(summary: Summary) -> None:
    """For eyes."""
    from rich.table import Table  # noqa: PLC0415  (only when a table is shown)

    it = summary
    title = (
        f"{it.requests} requests of the trace on {it.model}: recorded arrivals x {it.stretch:g}, "
        f"prompts of at most {it.prompt_tokens_max} and answers of at most "
        f"{it.output_tokens_max} tokens, synthetic prompts"
    )
    table = Table(title=title, title_justify="left")
    for name in ("", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    for name, values in (
        ("time to first token", it.ttft_seconds),
        ("time per output token", it.time_per_output_token_seconds),
        ("end to end", it.end_to_end_seconds),
    ):
        table.add_row(name, *(_milliseconds(values.get(f"p{each}")) for each in PERCENTILES))
    out = console()
    out.print(table)
    failed = ", ".join(f"{code} {count}" for code, count in it.failed.items()) or "none"
    out.print(
        f"requests {it.requests}   completed {it.completed}   failed {failed}   "
        f"lost {it.lost}   repeated {it.repeated}   "
        f"{it.tokens_per_second:g} tokens/s over {it.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    if it.delayed:
        out.print(f"{it.delayed} arrivals waited for a free connection (--open-requests-max)")


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1000:.1f} ms"
