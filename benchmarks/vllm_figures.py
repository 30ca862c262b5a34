"""From what `vllm bench serve` keeps of a measurement to figures, and from pairs of them to ratios.

Pure: neither vLLM nor a server is needed to read this.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OURS = "inferlog"
THEIRS = "vllm"
ARMS = (OURS, THEIRS)

Measured = Mapping[str, Any]
"""One measurement of one arm."""
Round = Mapping[str, Mapping[str, Measured]]
"""A measurement by case, then by arm."""

_TIMES = tuple(
    f"p{share}_{metric}_ms" for metric in ("ttft", "itl", "e2el") for share in (50, 95, 99)
)


def turns(rounds: int) -> list[tuple[str, list[int]]]:
    """Who runs, and the rounds measured meanwhile: A-B, B-A, A-B …, equal neighbours joined."""
    found: list[tuple[str, list[int]]] = []
    for number in range(rounds):
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            if found and found[-1][0] == arm:
                found[-1][1].append(number)
            else:
                found.append((arm, [number]))
    return found


def read_result(result: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The figures in the client's detailed result; `tokens` is how long every answer should be."""
    errors = [it for it in result["errors"] if it]
    return {
        "completed": result["completed"],
        "failed": result["failed"],
        "first_error": errors[0].strip().splitlines()[-1] if errors else "",
        "wrong_length": sum(it != tokens for it in result["output_lens"]),
        "input_tokens": result["total_input_tokens"],
        "output_tokens": result["total_output_tokens"],
        "seconds": result["duration"],
        "output_tokens_per_second": result["output_throughput"],
        "gaps_per_request": statistics.mean(map(len, result["itls"])),
        **{name: result[name] for name in _TIMES},
    }


def problems(rounds: Sequence[Round]) -> list[str]:
    """Why these rounds compare nothing; empty if they do: the same work, and all of it done."""
    found: list[str] = []
    for number, case, pair in _pairs(rounds):
        for arm, measured in pair.items():
            where = f"round {number}, {case}, {arm}"
            if measured["failed"]:
                found.append(f"{where}: {measured['failed']} failed ({measured['first_error']})")
            elif measured["wrong_length"]:
                found.append(f"{where}: {measured['wrong_length']} answers are not of full length")
        prompts = {arm: it["input_tokens"] for arm, it in pair.items()}
        if len(set(prompts.values())) > 1:
            found.append(f"round {number}, {case}: prompts differ in tokens: {prompts}")
    return found


def _pairs(rounds: Sequence[Round]) -> Iterator[tuple[int, str, Mapping[str, Measured]]]:
    for number, cases in enumerate(rounds):
        for case, pair in cases.items():
            yield number, case, pair


def each(rounds: Sequence[Round], case: str, arm: str, name: str) -> list[float]:
    """One figure of one arm over the rounds."""
    return [it[case][arm][name] for it in rounds]


def ratios(rounds: Sequence[Round], case: str, name: str) -> list[float]:
    """Ours by theirs, round by round: a slow minute of the machine meets both of a round."""
    both = (each(rounds, case, arm, name) for arm in ARMS)
    return [ours / theirs for ours, theirs in zip(*both, strict=True)]


def added(rounds: Sequence[Round], case: str, name: str) -> list[float]:
    """Ours less theirs, round by round."""
    both = (each(rounds, case, arm, name) for arm in ARMS)
    return [ours - theirs for ours, theirs in zip(*both, strict=True)]


def steps_added(rounds: Sequence[Round], case: str) -> list[float]:
    """What the p99 gap between chunks grows by, in engine steps: vLLM's own median gap is one."""
    steps_ms = each(rounds, case, THEIRS, "p50_itl_ms")
    more_ms = added(rounds, case, "p99_itl_ms")
    return [more / step for more, step in zip(more_ms, steps_ms, strict=True)]


def cpu_ms_per_token(rounds: Sequence[Round], case: str, arm: str, part: str) -> list[float]:
    """CPU of one part of an arm over the tokens it helped to make."""
    found = [it[case][arm] for it in rounds]
    return [it["cpu_seconds"][part] / max(it["output_tokens"], 1) * 1e3 for it in found]
