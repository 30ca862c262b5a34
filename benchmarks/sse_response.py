"""Our response for server-sent events against sse-starlette's: what a token costs the API.

Two servers (`benchmarks.sse_server`), alike but for the response, answer the same load client in
turn, A-B-B-A. `paced`: 64 streams that get a token per step of 5 ms each; `short`: answers of 16
tokens in one event, 64 at a time, where what a stream costs by itself shows.
"""

import argparse
import secrets
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.load import LoadClient, Order
from benchmarks.results_file import Run, spread
from benchmarks.server import Server
from benchmarks.stack import HOST
from inferlog.local_ports import any_free

KINDS = ("ours", "sse-starlette")
CASES = {"paced": (64, 400), "short": (2000, 16)}
CLIENTS = 64
REPEATS = 6


class SseServer(Server):
    """One of the two."""

    def __init__(self, kind: str, folder: Path) -> None:
        port, self.key = any_free(HOST, 1), secrets.token_hex(16)
        words = ["benchmarks.sse_server", kind, str(port), self.key]
        super().__init__([sys.executable, "-m", *words], port, "/health/live", folder)


def measure(server: SseServer, load: LoadClient, case: str) -> dict[str, float]:
    """One repeat."""
    requests, tokens = CASES[case]
    order = Order(
        port=server.port,
        key=server.key,
        kind="streamed",
        requests=requests,
        clients=CLIENTS,
        tokens=tokens,
    )
    before_s = server.cpu_seconds()
    carried = load.carry_out(order)
    spent_s = server.cpu_seconds() - before_s
    return {
        "tokens_per_second": requests * tokens / carried.seconds,
        "tokens_per_cpu_second": requests * tokens / spent_s,
        "cpu_us_per_stream": spent_s / requests * 1e6,
        "client_cpu_us_per_stream": carried.cpu_seconds / requests * 1e6,
    }


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    repeats = parser.parse_args().repeats
    run = Run("sse_response", {"cases": CASES, "clients": CLIENTS, "repeats": repeats})
    figures: dict[str, dict[str, list[dict[str, float]]]]
    figures = {case: {kind: [] for kind in KINDS} for case in CASES}
    with ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="inferlog-bench-")))
        servers = {kind: started.enter_context(SseServer(kind, folder)) for kind in KINDS}
        load = started.enter_context(LoadClient())
        for repeat in range(-1, repeats):
            for kind in KINDS if repeat % 2 else reversed(KINDS):
                for case in CASES:
                    one = partial(measure, servers[kind], load, case)
                    if repeat < 0:  # this round warms up
                        one()
                        continue
                    what = f"{case}, {kind}, {repeat + 1} of {repeats}"
                    figures[case][kind].append(run.once(what, one))
    for case, by_kind in figures.items():
        for kind, found_of_kind in by_kind.items():
            values = [it["tokens_per_cpu_second"] for it in found_of_kind]
            print(f"{case:6} {kind:14} {spread(values)} tokens per CPU-second of the API")
    run.keep({**figures, "ratio": {case: ratio(figures[case]) for case in CASES}})


def ratio(by_kind: dict[str, list[dict[str, float]]]) -> float:
    """Ours over theirs: the median of the rounds' ratios."""
    pairs = zip(by_kind["ours"], by_kind["sse-starlette"], strict=True)
    name = "tokens_per_cpu_second"
    found = statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)
    print(f"ours / theirs: {found:.2f}")
    return found


if __name__ == "__main__":
    main()
