"""What the processes of a stack say of themselves: gauges while they run, and what they have written."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.checker.bounds import GAUGES
from tests.checker.history import Sample
from tests.faults.running_stack import RunningStack

PERIOD_SECONDS = 1.0


@asynccontextmanager
async def watched(stack: RunningStack) -> AsyncIterator[list[Sample]]:
    """Samples the gauges that have a bound, of every process that answers, until the body ends."""
    samples: list[Sample] = []
    watching = asyncio.create_task(_watch(stack, samples))
    try:
        yield samples
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(stack: RunningStack, samples: list[Sample]) -> None:
    while True:
        for name, text in (await metrics(stack)).items():
            for family in text_string_to_metric_families(text):
                if family.name in GAUGES:
                    samples += [Sample(name, family.name, it.value) for it in family.samples]
        await asyncio.sleep(PERIOD_SECONDS)


async def metrics(stack: RunningStack) -> dict[str, str]:
    """`/metrics` of every process that answers within a second."""
    state = json.loads((stack.folder / "up.json").read_text())
    found: dict[str, str] = {}
    async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
        for name, port in state["metrics"].items():
            with contextlib.suppress(httpx.HTTPError):
                found[name] = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return found


async def writings(stack: RunningStack) -> dict[str, str]:
    """Everything that may be read by whoever looks after the machine: output, logs, metrics."""
    files = [stack.folder / "up.txt", *sorted((stack.folder / "logs").glob("*.log"))]
    found = {it.name: it.read_text(errors="replace") for it in files}
    return found | await metrics(stack)
