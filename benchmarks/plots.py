"""From the kept results to the pictures of docs/performance.md: `make plots`.

Needs matplotlib, which `make plots` installs apart from the project (requirements/bench-plots.txt).
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH_IN, HEIGHT_IN = 7.0, 3.2
OURS, OTHER, MUST = "#1f6f8b", "#c98b3a", "#a33c3c"
mpl.rcParams.update(
    {
        "svg.hashsalt": "inferlog",  # the same figures give the same file
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.autolayout": True,
    }
)

Repeats = Sequence[float]


def middle(repeats: Repeats) -> float:
    """The median."""
    return statistics.median(repeats)


def whiskers(all_repeats: Sequence[Repeats]) -> list[list[float]]:
    """From each median down to the lowest and up to the highest."""
    return [
        [middle(it) - min(it) for it in all_repeats],
        [max(it) - middle(it) for it in all_repeats],
    ]


def bars(axes: Any, labels: Sequence[str], values: Sequence[Repeats], colours: Any = OURS) -> None:
    """Lying bars with whiskers, the first on top, each with its number."""
    places = range(len(labels))
    axes.barh(places, [middle(it) for it in values], color=colours, height=0.6)
    axes.errorbar(
        [middle(it) for it in values],
        places,
        xerr=whiskers(values),
        fmt="none",
        ecolor="#333333",
        capsize=3,
    )
    for place, it in zip(places, values, strict=True):
        axes.annotate(
            f"{middle(it):,.0f}",
            (max(it), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def must(axes: Any, value: float, text: str) -> None:
    """The line that must be met."""
    axes.axvline(value, color=MUST, linestyle="--", linewidth=1)
    axes.annotate(
        text, (value, 1), xycoords=("data", "axes fraction"), color=MUST, ha="center", va="bottom"
    )


def pipeline(figures: Any, axes: Any) -> None:
    """CPU of a request, part by part."""
    cases = {"accept": "accepted only", "whole": "whole answer", "streamed": "stream of 16 tokens"}
    left = [0.0] * len(cases)
    for part, colour in (("api", OURS), ("worker", "#5fa8a0"), ("broker", "#bbbbbb")):
        widths = [
            middle([it[f"{part}_cpu_us_per_request"] for it in figures["at_once"][case]])
            for case in cases
        ]
        axes.barh(list(cases.values()), widths, left=left, color=colour, label=part, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("CPU-µs per request")


def open_loop(figures: Any, axes: Any) -> None:
    """Time to the first token at rising rates."""
    rates = sorted({it["rate"] for it in figures["cases"]})
    for share, colour in (("p50", OURS), ("p95", "#5fa8a0"), ("p99", OTHER)):
        values = [
            [it[f"first_byte_{share}_seconds"] * 1e3 for it in figures["cases"] if it["rate"] == r]
            for r in rates
        ]
        axes.errorbar(
            rates,
            [middle(it) for it in values],
            yerr=whiskers(values),
            color=colour,
            label=share,
            marker="o",
            capsize=3,
        )
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.set_xlabel("requests per second that are due")
    axes.set_ylabel("ms to the first token")


def open_streams(figures: Any, axes: Any) -> None:
    """What a streamed token costs the API."""
    counts = sorted({it["streams"] for it in figures["cases"]})
    values = [
        [it["tokens_per_api_cpu_second"] for it in figures["cases"] if it["streams"] == count]
        for count in counts
    ]
    bars(axes, [f"{it:,} streams" for it in counts], values)
    must(axes, 60_000, "60,000 asked for")
    axes.set_xlabel("tokens per CPU-second of the API")


def backlog(figures: Any, axes: Any) -> None:
    """What a request costs with so many behind it."""
    depths = sorted({it["depth"] for it in figures["cases"]})
    values = [
        [
            it["api_cpu_us_per_request"] + it["worker_cpu_us_per_request"]
            for it in figures["cases"]
            if it["depth"] == depth
        ]
        for depth in depths
    ]
    bars(axes, [f"{it:,} waiting" for it in depths], values)
    axes.set_xlabel("API + worker, CPU-µs per request")


def litellm(figures: Any, axes: Any) -> None:
    """Requests per CPU-second, the same work counted."""
    labels, values, colours = [], [], []
    parts = {"inferlog": ("api", "worker"), "litellm": ("proxy", "upstream"), "plain": ("service",)}
    names = {"inferlog": "Inferlog", "litellm": "LiteLLM", "plain": "no log, no gateway"}
    for case, by_way in figures["cases"].items():
        for way, repeats in by_way.items():
            spent = [sum(it[f"{p}_cpu_us_per_request"] for p in parts[way]) for it in repeats]
            labels.append(f"{names[way]}, {case}")
            values.append([1e6 / it for it in spent])
            colours.append(OURS if way == "inferlog" else OTHER if way == "litellm" else "#bbbbbb")
    bars(axes, labels, values, colours)
    axes.set_xlabel("requests per CPU-second, engine's process counted")


DRAWN: dict[str, Callable[[Any, Any], None]] = {
    "pipeline": pipeline,
    "open_loop": open_loop,
    "open_streams": open_streams,
    "backlog": backlog,
    "litellm": litellm,
}


def main() -> None:
    """Draws whatever there is a result of."""
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            picture, axes = plt.subplots(figsize=(WIDTH_IN, HEIGHT_IN))
            draw(json.loads(path.read_text())["figures"], axes)
            picture.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})
            plt.close(picture)
            print(f"docs/pictures/{name}.svg")


if __name__ == "__main__":
    main()
