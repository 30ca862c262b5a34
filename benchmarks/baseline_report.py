"""The tables of the comparisons with other servers: a row for each, medians with lowest and highest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results_file import spread
from benchmarks.tables import of_repeats, table
from benchmarks.vllm_report import show_vllm_serve

Figures = Mapping[str, Any]
CPU = "_cpu_us_per_request"
LITELLM_RATIOS = (
    ("gateway", "API / proxy"),
    ("same_work", "API + worker / proxy + upstream"),
    ("least_favourable", "API + worker / proxy alone"),
)
WAYS = {"inferlog": "Inferlog", "litellm": "LiteLLM before the service", "plain": "service alone"}


def _parts(repeats: Sequence[Mapping[str, float]]) -> str:
    """CPU of each part of a way but the load client."""
    names = [it.removesuffix(CPU) for it in repeats[0] if it.endswith(CPU)]
    names.remove("client")
    return ", ".join(f"{it} {spread([r[it + CPU] for r in repeats])}" for it in names)


def show_litellm(figures: Figures) -> str:
    """The tables of `benchmarks.against_litellm`."""
    rows, ratios = [], []
    for case, by_way in figures["cases"].items():
        for way, label in WAYS.items():
            repeats = by_way[way]
            added = figures["added_cpu_us_per_request"][case].get(way)
            rows.append(
                [
                    f"{case}, {label}",
                    of_repeats(repeats, "requests_per_second"),
                    of_repeats(repeats, "tokens_per_second"),
                    _parts(repeats),
                    spread(added) if added else "",
                    of_repeats(repeats, "client_cpu_us_per_request"),
                ]
            )
        found = figures["ratios"][case]
        ratios.append([case, *(spread(found[name], 1) for name, _ in LITELLM_RATIOS)])
    head = ["", "requests/s", "tokens/s", "CPU-µs per request of each part"]
    head += ["added to the service alone", "load client"]
    ratio_head = ["requests per CPU-second, Inferlog / LiteLLM", *(it for _, it in LITELLM_RATIOS)]
    return f"{table(head, rows)}\n\n{table(ratio_head, ratios)}"


BASELINE_SHOWN: dict[str, Callable[[Figures], str]] = {
    "litellm": show_litellm,
    "vllm_serve": show_vllm_serve,
}
