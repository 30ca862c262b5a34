"""`inferlog demo`: everything once, on free ports, and cleaned up again."""

import asyncio
import contextlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from inferlog.api_client import Target, choose_model
from inferlog.data_dir import first_key
from inferlog.demo_needs import NEEDS, OPTIONS, how_many_workers
from inferlog.launch import run_process
from inferlog.local_ports import any_free
from inferlog.problems import CommandFailed
from inferlog.progress import Reports, waiting
from inferlog.replay import ReplayPlan, measure_rates, replay
from inferlog.replay_table import Summary, print_table
from inferlog.request_log import print_timeline
from inferlog.send import stream_answer
from inferlog.settings import DemoCommand, UpCommand
from inferlog.stack import Stack
from inferlog.takeover import Show, Takeover
from inferlog.timeline import collect, shortened
from inferlog.trace import fitting_stretch, read_trace
from inferlog.up import STOP_SECONDS, announce, stamped
from runtime.logs import LogSettings
from runtime.service import EXIT_FAILED, EXIT_FORCED, EXIT_OK, Lifecycle, signals_to
from topics.ports import LogError

PROMPT_TOKENS_MAX = 128
OUTPUT_TOKENS_MAX = 32
CHAT_TOKENS = 48
QUESTION = "In two sentences: why is a log a good place to keep a conversation?"
TRACE = Path("examples") / "azure_code_500.csv"


class Demo:
    """See `runtime.service.Service`: a stack, and what is shown on it as a side task."""

    def __init__(
        self, command: DemoCommand, stack: Stack, keep_serving: bool, reports: Reports
    ) -> None:
        self.summary: Summary | None = None
        self.takeover: Takeover | None = None
        self.finish = asyncio.Event()
        self._command = command
        self._stack = stack
        self._keep_serving = keep_serving
        self._reports = reports
        self._show: asyncio.Task[None] | None = None
        self._second: asyncio.Task[float] | None = None

    async def start(self) -> Sequence[asyncio.Task[Any]]:
        """Starts everything; the show runs beside it."""
        tasks = await self._stack.start()
        self._show = asyncio.create_task(self._run(), name="demo")
        return [*tasks, self._show]

    async def drain(self) -> None:
        """As `up`; whatever is being shown is over."""
        await self._end_show()
        await self._stack.drain()

    async def stop(self) -> None:
        """As `up`."""
        await self._end_show()
        await self._stack.stop()

    async def _end_show(self) -> None:
        under_way = [task for task in (self._show, self._second) if task is not None]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _run(self) -> None:
        target = Target(self._stack.url, _key(self._stack))
        await self._chat(target)
        if self._stack.command.workers > 1:
            print(
                "\nA second worker starts now. Until it is ready, the first one answers alone:",
                flush=True,
            )
            self._second = asyncio.create_task(self._start_second(), name="second-worker")
        began_s = time.monotonic()
        self.summary = await self._replay(target)
        print()
        print_table(self.summary)
        if self._second is not None:
            await self._await_second(self._second, began_s, self.summary)
        self.takeover = await self._kill_the_speaker(target)
        sys.stdout.flush()
        if self._keep_serving:
            announce(self._stack)
            print(
                f"inferlog log {self.takeover.request_id} --data-dir {self._stack.data_dir.path}",
                flush=True,
            )
        else:
            self.finish.set()
        await asyncio.Event().wait()

    async def _start_second(self) -> float:
        """When it was ready."""
        await self._stack.start_others()
        return time.monotonic()

    async def _await_second(
        self, second: "asyncio.Task[float]", began_s: float, summary: Summary
    ) -> None:
        beside_s = second.result() - began_s if second.done() else summary.seconds
        print(
            f"(For {min(beside_s, summary.seconds):.0f} of these {summary.seconds:.0f} s the second "
            "worker was starting on the same cores.)",
            flush=True,
        )
        if not second.done():
            async with waiting("the second worker is starting"):
                await second

    async def _kill_the_speaker(self, target: Target) -> Takeover:
        alone = self._stack.command.workers == 1
        print(
            "\nNow the worker that speaks is killed in the middle of its sentence. "
            + (
                "No other stands by: the sentence waits until it was started again."
                if alone
                else "The other one goes on from the next token."
            ),
            flush=True,
        )
        log = self._stack.open_log("inferlog-demo")
        try:
            with self._reports.held():
                async with target.client() as client:
                    model = await choose_model(client, None)
                    shown = await Show(self._stack.worker_named, log).run(client, model)
            print("\n" + "\n".join(shown.lines()))
            print("\nWhat the log says of it (inferlog log; token events in a row as one):")
            entries = await collect(log, self._stack.command.pool, shown.request_id)
            print_timeline(shown.request_id, shortened(entries))
        except LogError as error:
            raise CommandFailed(f"the log could not be read: {error}") from None
        finally:
            await log.close()
        return shown

    async def _chat(self, target: Target) -> None:
        headers = {"Idempotency-Key": f"demo-{secrets.token_hex(6)}"}
        async with target.client() as client:
            model = await choose_model(client, None)
            body = {
                "model": model,
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": CHAT_TOKENS,
                "temperature": 0,
                "stream_options": {"include_usage": True},
            }
            print(f"\n> {QUESTION}\n", flush=True)
            first = await stream_answer(client, body, headers, show=True)
            _say(f"{first['usage']['completion_tokens']} tokens from {model}, streamed", first)
            print("\nThe same request again, under the same Idempotency-Key:", flush=True)
            again = await stream_answer(client, body, headers, show=False)
        same = again["text"] == first["text"] and again["request_id"] == first["request_id"]
        if not (again["replayed"] and same):
            raise CommandFailed("the recorded answer did not come back under its key")
        _say("Idempotent-Replayed: true, the recorded answer, nothing was run", again)

    async def _replay(self, target: Target) -> Summary:
        rows = read_trace(
            trace_file(),
            rows=self._command.demo_rows,
            prompt_tokens_max=PROMPT_TOKENS_MAX,
            output_tokens_max=OUTPUT_TOKENS_MAX,
        )
        async with target.client() as client:
            model = await choose_model(client, None)
            rates = await measure_rates(client, model, rows)
        stretch = fitting_stretch(rows, rates)
        print(
            f"\nReplaying {len(rows)} rows of recorded traffic: this machine reads "
            f"{rates.prefill or 0:,.0f} prompt tokens/s, so arrivals are stretched x {stretch:.2f} "
            f"({rows[-1].at_s * stretch:.0f} s).",
            flush=True,
        )
        return await replay(target, ReplayPlan(model=model, rows=rows, stretch=stretch))


def trace_file() -> Path:
    """The trace that lies in the repository. Raises CommandFailed where it does not."""
    found = Path(__file__).resolve().parent.parent / TRACE
    if not found.exists():
        raise CommandFailed(f"{TRACE} is not here: run the demo from a clone of the repository")
    return found


def _key(stack: Stack) -> str:
    keys = stack.keys_source()["api_keys_file"]
    key = first_key(keys)
    if key is None:
        raise CommandFailed(f"{keys} holds no key")
    return key


def _say(what: str, answer: dict[str, Any]) -> None:
    print(
        f"[{what}; first text after {answer['ttft_seconds']:.2f} s, all after "
        f"{answer['seconds']:.2f} s; request {answer['request_id']}]",
        flush=True,
    )


async def _live(command: DemoCommand, stack: Stack, reports: Reports) -> int:
    keep = sys.stdout.isatty() if command.keep_serving is None else command.keep_serving
    demo = Demo(command, stack, keep, reports)
    life = Lifecycle(demo, drain_seconds=stack.drain_seconds(), stop_seconds=STOP_SECONDS)

    def signalled() -> None:
        life.signalled()
        stack.forced = life.forced
        reports("stopping at once" if life.forced else "stopping (once more: at once)")

    async def end_when_shown() -> None:
        await demo.finish.wait()
        reports("ending everything that was started")
        life.stop()

    ending = asyncio.create_task(end_when_shown())
    try:
        with signals_to(signalled):
            await life.run()
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
    reports("everything that was started has ended")
    if life.forced:
        return EXIT_FORCED
    replayed, shown = demo.summary, demo.takeover
    if replayed is None or shown is None:
        return EXIT_FORCED  # a signal came before the end
    return EXIT_OK if replayed.flawless() and shown.flawless() else EXIT_FAILED


def run(command: DemoCommand) -> int:
    """Shows everything; 0 if all came back whole."""
    print(f"Inferlog, with the {command.engine} engine. {NEEDS[command.engine]}", flush=True)
    workers, why = how_many_workers(command, psutil.virtual_memory().available // 2**20)
    if why:
        print(why, flush=True)
    folder = command.demo_data_dir
    temporary = None
    if folder is None:
        temporary = folder = Path(tempfile.mkdtemp(prefix="inferlog-demo-"))
    up = UpCommand(
        engine=command.engine,
        engine_option=OPTIONS[command.engine],
        workers=workers,
        port=any_free("127.0.0.1", 2),
        data_dir=folder,
        log=command.log,
        drain_seconds=5.0,
    )
    reports = Reports(stamped)
    stack = Stack(up, reports, lambda it: reports(f"ready: {it.url}"), first_workers=1)
    try:
        log = LogSettings(level="WARNING")
        return run_process(lambda: _live(command, stack, reports), log, silent=("aiokafka",))
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
