"""A worker is killed in the middle of a sentence, and the sentence goes on: shown, and checked."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from inferlog.api_client import CHAT, Chunk, Refused, StreamCut, open_stream
from inferlog.problems import CommandFailed
from inferlog.stream_check import StreamCheck
from inferlog.supervisor import Child
from inferlog.witness import Account, Stretch, Witness
from topics.ports import Log

STORY = "Tell a long story about a lighthouse keeper who writes down every ship that passes."
STORY_TOKENS = 120
KILL_AFTER_TOKENS = 24
SILENCE_SECONDS = 5.0
"""How often a long pause is told, as one is where no second worker stands by."""

FindWorker = Callable[[str], Child | None]
"""From the worker id that is on the log to the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What was seen. `seam` is the position of the first token that the successor said.

    `pause_seconds`: between the pieces before and after the seam, as the client met them;
    `kill_seconds`: from the kill to the piece after. `lost` and `repeated` count tokens;
    `as_logged`: the text that came is, to the letter, what the visible events on the log say.
    """

    request_id: str
    killed: str
    killed_pid: int
    successor: str
    seam: int
    pause_seconds: float
    kill_seconds: float
    tokens: int
    lost: int
    repeated: int
    as_logged: bool
    each_token_known: bool

    def flawless(self) -> bool:
        """Every token once, in its place."""
        return self.as_logged and not (self.lost or self.repeated)

    def lines(self) -> list[str]:
        """What is said about it."""
        checked = (
            f"each token's own number (0 to {self.tokens - 1}), the whole text with what it must "
            "be, and with the log"
            if self.each_token_known
            else "event ids only rise and end at the count of tokens; the log has every position "
            f"from 0 to {self.tokens - 1} once, and its text is the text that came. Whether an "
            "undisturbed run would have said the same words is not checked, and not promised"
        )
        pids = f"{self.killed} (pid {self.killed_pid})"
        verdict = "" if self.as_logged else "; AND THE TEXT DIFFERS FROM THE LOG"
        seam = self.seam
        return [
            f"Seam:   {pids} said tokens 0 to {seam - 1}; {self.successor} went on with token {seam}.",
            f"Pause:  {self.pause_seconds:.2f} s between two tokens; {self.kill_seconds:.2f} s since the kill.",
            f"Result: {self.tokens} tokens, {self.lost} lost, {self.repeated} repeated{verdict}.",
            f"Checked: {checked}.",
        ]


class Show:
    """Streams the story into the terminal, kills who tells it, and watches it go on."""

    def __init__(self, find_worker: FindWorker, log: Log) -> None:
        self._find_worker = find_worker
        self._log = log
        self._check = StreamCheck(STORY, STORY_TOKENS)
        self._killed: tuple[Stretch, Child, int, float] | None = None
        self._passed = 0
        self._before_s: float | None = None
        self._after_s: float | None = None

    async def run(self, client: httpx.AsyncClient, model: str) -> Takeover:
        """Raises CommandFailed where there was nothing to see, or a stream broke."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": STORY}],
            "max_tokens": STORY_TOKENS,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
        print(f"\n> {STORY}\n", flush=True)
        streamed = await open_stream(client, CHAT, body, {})
        telling = asyncio.create_task(self._tell_silence())
        try:
            witness = await Witness.open(self._log, streamed.request_id)
            try:
                async for chunk in streamed.chunks():
                    await self._show(chunk, witness)
                print(flush=True)
                await witness.until_end()
            finally:
                await witness.close()
        except (Refused, StreamCut) as error:
            raise CommandFailed(f"{error}; request {streamed.request_id}") from None
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await streamed.response.aclose()
        return self._outcome(streamed.request_id, witness.account)

    async def _tell_silence(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_SECONDS)
            if self._killed is not None and self._after_s is None:
                silent_s = time.monotonic() - self._killed[3]
                if silent_s >= SILENCE_SECONDS:
                    print(f"    ... {silent_s:.0f} s", flush=True)

    async def _show(self, chunk: Chunk, witness: Witness) -> None:
        before = self._check.position
        self._check.feed(chunk)
        position = self._check.position
        if self._killed is not None:
            # the log says whose the token is: some of the dead one's may still be on their way
            await witness.until_token(position)
            self._mark_passed(chunk, position, witness.account)
        if self._after_s is None and position > before:
            self._before_s = chunk.at_s
        print(chunk.text, end="", flush=True)
        if self._killed is None and position >= KILL_AFTER_TOKENS:
            await witness.until_token(position)
            self._kill(witness.account)

    def _mark_passed(self, chunk: Chunk, position: int, account: Account) -> None:
        """Marks each change of owner that this piece lies behind: the seam, and later ones."""
        for stretch in account.stretches[self._passed :]:
            if position <= stretch.first:
                break
            self._passed += 1
            name = self._name_of(stretch)
            if self._after_s is None:
                self._after_s = chunk.at_s
                _mark(f"{name} goes on with token {stretch.first} after {self._pause_s():.2f} s")
            else:
                _mark(f"{name} is given its share back, and goes on with token {stretch.first}")

    def _pause_s(self) -> float:
        assert self._killed is not None
        assert self._after_s is not None
        return self._after_s - (self._before_s or self._killed[3])

    def _kill(self, account: Account) -> None:
        speaker = account.speaker()
        child = self._find_worker(speaker.worker) if speaker else None
        if speaker is None or child is None or (pid := child.pid) is None:
            raise CommandFailed(f"the log names {speaker} as who speaks, and no such worker runs")
        os.kill(pid, signal.SIGKILL)
        self._killed = (speaker, child, pid, time.monotonic())
        self._passed = len(account.stretches)
        _mark(f"SIGKILL to {child.spec.name}, pid {pid}, which says this")

    def _name_of(self, stretch: Stretch) -> str:
        child = self._find_worker(stretch.worker)
        name = child.spec.name if child else stretch.worker
        again = self._killed is not None and stretch.worker == self._killed[0].worker
        return f"{name} (started again)" if again else name

    def _outcome(self, request_id: str, account: Account) -> Takeover:
        if self._killed is None:
            raise CommandFailed(f"the answer ended before token {KILL_AFTER_TOKENS}: none to kill")
        killed, child, pid, killed_s = self._killed
        stretch = account.after(killed)
        if stretch is None or self._after_s is None:
            raise CommandFailed(
                f"the whole answer was on the log before {child.spec.name} was dead: no seam"
            )
        check = self._check
        # tokens that a client counts and the log does not, or the other way, are lost somewhere
        apart = abs(check.tokens() - account.tokens)
        return Takeover(
            request_id=request_id,
            killed=child.spec.name,
            killed_pid=pid,
            successor=self._name_of(stretch),
            seam=stretch.first,
            pause_seconds=self._pause_s(),
            kill_seconds=self._after_s - killed_s,
            tokens=account.tokens,
            lost=max(check.lost(), apart),
            repeated=check.repeated(),
            as_logged="".join(check.text) == account.text,
            each_token_known=check.is_scripted(),
        )


def _mark(what: str) -> None:
    bold, plain = ("\033[1;7m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}    <<< {what} >>>{plain}\n", end="", flush=True)
