"""Two results of one benchmark, figure by figure. Pure: what to print is decided elsewhere.

A result (`benchmarks/results/*.json`) holds figures nested to any depth. Lists are repeats of the same
measurement, unless their entries name a case (`CASE_KEYS`): then those of one case are repeats. A number
with such repeats is a figure; it is compared by its median, and its spread says what that is worth.
Numbers in a list within a repeat are its trials: their percentiles are the figures, or a single outlier would
hide all the rest.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inferlog.replay_table import percentile

CASE_KEYS = (
    "depth",
    "streams",
    "rate",
    "answers",
    "replicas",
    "workers",
    "suspects",
    "backlog",
    "older",
    "before",
    "beside",
    "standby",
    "concurrency",
)
MORE_IS_BETTER = ("_per_second", "_cpu_second")
LESS_IS_BETTER = (
    "_us_per_",
    "_bytes",
    "_mib",
    "_ms_per_",
    "_seconds",
    "seconds.",
    "_per_request",
    "_per_token",
    "_late_share",
    "given_up",
    "refused",
)

PERCENTILES = (50, 95)
TOLERANCE = 0.15
"""Two readings of one machine's speed (`*_ns`) differ by as much."""

Verdict = Literal["same", "better", "worse", "more", "less", "gone", "new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure: the repeats of both results, and what became of it.

    `same`: the ranges of the repeats overlap. `more` and `less`: nobody said which of them is better,
    or one of them was measured once, and nobody knows its spread.
    """

    figure: str
    old: Sequence[float]
    new: Sequence[float]
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """New over old, by their medians; None where one is missing or the old is 0."""
        if not self.old or not self.new or not (base := statistics.median(self.old)):
            return None
        return statistics.median(self.new) / base


def _case(entry: Mapping[str, Any]) -> str:
    return ",".join(
        f"{key}={entry[key]}" for key in CASE_KEYS if _names_a_case(key, entry.get(key))
    )


def _names_a_case(key: str, value: Any) -> bool:
    return key in CASE_KEYS and isinstance(value, int | float)


def _walk(path: str, node: Any, *, repeated: bool = False) -> Iterator[tuple[str, float]]:
    if isinstance(node, bool) or node is None or isinstance(node, str):
        return
    if isinstance(node, int | float):
        yield path, float(node)
    elif isinstance(node, Mapping):
        case = _case(node)
        here = f"{path}[{case}]" if case else path
        for key, value in node.items():
            if not _names_a_case(key, value):
                yield from _walk(f"{here}.{key}" if here else str(key), value, repeated=repeated)
    elif repeated and node and all(isinstance(it, int | float) for it in node):
        for percent in PERCENTILES:
            yield f"{path}.p{percent}", percentile(node, percent)
    else:
        for value in node:
            yield from _walk(path, value, repeated=True)


def series(figures: Mapping[str, Any]) -> dict[str, list[float]]:
    """Name of a figure -> its repeats."""
    found: dict[str, list[float]] = {}
    for name, value in _walk("", figures):
        found.setdefault(name, []).append(value)
    return found


def _verdict(name: str, old: Sequence[float], new: Sequence[float]) -> Verdict:
    if not old or not new:
        return "new" if new else "gone"
    if min(new) <= max(old) and min(old) <= max(new):
        return "same"
    once = len(old) == 1 or len(new) == 1
    grown = statistics.median(new) > statistics.median(old)
    if name.endswith(MORE_IS_BETTER) and not once:
        return "better" if grown else "worse"
    if any(it in name for it in LESS_IS_BETTER) and not once:
        return "worse" if grown else "better"
    return "more" if grown else "less"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every figure of either result, in the order of the new one."""
    before, after = series(old["figures"]), series(new["figures"])
    names = [*after, *(it for it in before if it not in after)]
    return [
        Change(
            figure=name,
            old=(was := before.get(name, [])),
            new=(now := after.get(name, [])),
            verdict=_verdict(name, was, now),
        )
        for name in names
    ]


def _alike(key: str, was: Any, now: Any) -> bool:
    if key.endswith("_ns") and was and now:
        return bool(abs(now / was - 1) < TOLERANCE)
    return bool(was == now)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why the two may not be comparable: lines for people."""
    lines: list[str] = []
    for part in ("settings", "machine", "versions"):
        was, now = old.get(part, {}), new.get(part, {})
        lines += [
            f"{part}: {key} was {was.get(key)!r} and is {now.get(key)!r}"
            for key in dict.fromkeys([*was, *now])
            if not key.startswith("load_average") and not _alike(key, was.get(key), now.get(key))
        ]
    return lines
