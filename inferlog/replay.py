"""`inferlog replay`: recorded arrivals, open loop, every answer checked and timed."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from inferlog.api_client import (
    COMPLETIONS,
    Refused,
    StreamCut,
    Target,
    choose_model,
    open_stream,
    resolve,
)
from inferlog.client_settings import ReplayCommand
from inferlog.problems import CommandFailed
from inferlog.progress import progress
from inferlog.replay_table import Outcome, Summary, print_table, summarise
from inferlog.stream_check import StreamCheck
from inferlog.trace import Rates, Row, fitting_stretch, read_trace, synthetic_prompt
from runtime.service import EXIT_FAILED, EXIT_OK

PROBES = 4
PROBE_OUTPUT_TOKENS = 16
PROBE_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """What to send where, and how fast."""

    model: str
    rows: Sequence[Row]
    stretch: float
    service_tier: str = "auto"
    open_requests_max: int = 512
    request_seconds_max: float = 700.0


def run(command: ReplayCommand) -> int:
    """Replays, prints the table or JSON; 1 if a token was lost or repeated, or a request failed."""
    summary = asyncio.run(_replay(command))
    if command.json:
        print(json.dumps(summary.as_dict()))
    else:
        print_table(summary)
    return EXIT_OK if summary.flawless() else EXIT_FAILED


async def _replay(command: ReplayCommand) -> Summary:
    rows = read_trace(
        command.trace,
        rows=command.rows,
        prompt_tokens_max=command.prompt_tokens_max,
        output_tokens_max=command.output_tokens_max,
    )
    target = resolve(command.client)
    async with target.client(connections=PROBES) as client:
        model = await choose_model(client, command.client.model)
        if command.stretch == "auto":
            rates = await measure_rates(client, model, rows)
            stretch = fitting_stretch(rows, rates)
        else:
            stretch = float(command.stretch)
    plan = ReplayPlan(
        model=model,
        rows=rows,
        stretch=stretch,
        service_tier=command.service_tier,
        open_requests_max=command.open_requests_max,
        request_seconds_max=command.request_seconds_max,
    )
    return await replay(target, plan)


async def measure_rates(client: httpx.AsyncClient, model: str, rows: Sequence[Row]) -> Rates:
    """A few requests at once, of the trace's mean prompt length, after one that warms up.

    Prefill: their prompt tokens until all have begun; decode: their tokens from there on.
    """
    length = max(8, sum(row.prompt_tokens for row in rows) // len(rows))
    run_name = f"probe{secrets.token_hex(3)}"

    async def one(number: int) -> tuple[float, float, int]:
        prompt = synthetic_prompt(number, length, run_name)
        outcome = await send_row(client, model, Row(0, length, PROBE_OUTPUT_TOKENS), prompt, "auto")
        if outcome.error is not None or outcome.first_s is None or outcome.last_s is None:
            raise CommandFailed(f"the server could not answer a first request: {outcome.error}")
        return outcome.first_s, outcome.last_s, outcome.output_tokens

    async with asyncio.timeout(PROBE_SECONDS_MAX):
        await one(0)
        began_s = time.monotonic()
        results = await asyncio.gather(*(one(1 + i) for i in range(PROBES)))
    begun_s = max(first_s for first_s, _, _ in results)
    ended_s = max(last_s for _, last_s, _ in results)
    generated = sum(tokens for _, _, tokens in results)
    return Rates(
        prefill=PROBES * length / max(1e-6, begun_s - began_s),
        decode=generated / (ended_s - begun_s) if ended_s - begun_s > 0.01 else None,
    )


async def replay(target: Target, plan: ReplayPlan) -> Summary:
    """Sends each row at its time, whether or not earlier ones are done; waits for all."""
    with progress("replaying", len(plan.rows)) as show:
        return await _replay_rows(target, plan, show)


async def _replay_rows(target: Target, plan: ReplayPlan, show: Callable[[int], None]) -> Summary:
    limit = asyncio.Semaphore(plan.open_requests_max)
    run_name = f"r{secrets.token_hex(3)}"
    outcomes: list[Outcome] = []
    delayed = 0
    async with (
        target.client(connections=plan.open_requests_max) as client,
        asyncio.TaskGroup() as group,
    ):
        began_s = time.monotonic()

        async def one(number: int, row: Row, due_s: float) -> None:
            prompt = synthetic_prompt(number, row.prompt_tokens, run_name)
            try:
                async with asyncio.timeout(plan.request_seconds_max):
                    outcome = await send_row(
                        client, plan.model, row, prompt, plan.service_tier, due_s
                    )
            except TimeoutError:
                outcome = Outcome(due_s=due_s, lost=1, error="timeout")
            finally:
                limit.release()
            outcomes.append(outcome)
            show(len(outcomes))

        for number, row in enumerate(plan.rows):
            due_s = began_s + row.at_s * plan.stretch
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            delayed += limit.locked()
            await limit.acquire()
            group.create_task(one(number, row, due_s))
    seconds = time.monotonic() - began_s
    return summarise(outcomes, plan.rows, plan.model, plan.stretch, seconds, delayed)


async def send_row(
    client: httpx.AsyncClient,
    model: str,
    row: Row,
    prompt: str,
    service_tier: str,
    due_s: float | None = None,
) -> Outcome:
    """One request of a row's lengths; never raises for what a server may do."""
    due_s = time.monotonic() if due_s is None else due_s
    check = StreamCheck(prompt, row.output_tokens)
    outcome = Outcome(due_s=due_s)
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": row.output_tokens,
        "temperature": 0,
        "service_tier": service_tier,
        "stream_options": {"include_usage": True},
    }
    try:
        streamed = await open_stream(client, COMPLETIONS, body, {})
    except Refused as error:
        outcome.error = error.code
        return outcome
    except CommandFailed:
        outcome.error = "unreachable"
        return outcome
    try:
        async for chunk in streamed.chunks():
            check.feed(chunk)
            if chunk.text:
                outcome.first_s = chunk.at_s if outcome.first_s is None else outcome.first_s
                outcome.last_s = chunk.at_s
    except Refused as error:
        outcome.error = error.code
    except StreamCut:
        outcome.error = "cut"
    finally:
        await streamed.response.aclose()
    outcome.end_s = time.monotonic()
    outcome.output_tokens = check.tokens()
    # A refusal is an answer; a stream that just stops is a loss.
    outcome.lost = check.lost() if outcome.error in {None, "cut"} else 0
    outcome.repeated = check.repeated()
    return outcome
