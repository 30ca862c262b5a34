"""What one run of the scripted engine says, token by token."""

from dataclasses import dataclass
from hashlib import sha256

from consumers.inference.engine.ports import Logged, Output, Report, Run, RunEnded
from core.text import StopScanner
from schemas.replies import FinishReason, TokenLogprob
from schemas.requests import Body

TOKENS_DEFAULT = 16


def prompt_text(body: Body) -> str:
    """What the tokens of a scripted answer are derived from."""
    if body.messages is not None:
        return "\n".join(message.content for message in body.messages)
    return body.prompt or ""


@dataclass(slots=True)
class Choice:
    """One unfinished choice of a run. Without a scanner no stop string can come."""

    index: int
    next: int
    scanner: StopScanner | None


class Stream:
    """One run: what it will say, and how far it is."""

    __slots__ = ("choices", "end", "first_at_s", "logprobs", "prefix", "prompt", "run_id", "words")

    def __init__(self, run: Run) -> None:
        body = run.body
        self.run_id = run.run_id
        self.prompt = prompt_text(body)
        self.words = len(self.prompt.split())
        self.prefix = sha256(self.prompt.encode("utf-8", "replace")).hexdigest()[:6]
        self.end = TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens
        self.logprobs = body.logprobs
        self.first_at_s = 0.0
        self.choices: list[Choice] = []
        for index, choice in enumerate(run.logged or (Logged(),) * body.n):
            if choice.finish_reason is not None:
                continue  # its end was said already
            start = len(choice.token_ids)
            scanner = None
            if body.stop or start:
                scanner = StopScanner(body.stop, self._text(0, start)[len(choice.text) :])
            self.choices.append(Choice(index, start, scanner))

    def advance(self, tokens: int, reports: list[Report]) -> bool:
        """Up to `tokens` more tokens of each choice; whether the run has ended."""
        still_open: list[Choice] = []
        for choice in self.choices:
            start = choice.next
            text, reason = self._advance(choice, tokens)
            ids = tuple(range(start, choice.next))
            logprobs = None if self.logprobs is None else self._logprobs(ids, self.logprobs)
            reports.append(Output(self.run_id, choice.index, ids, text, logprobs, reason))
            if reason is None:
                still_open.append(choice)
        self.choices = still_open
        if not still_open:
            reports.append(RunEnded(self.run_id, self.words, 0))
        return not still_open

    def _text(self, start: int, end: int) -> str:
        prefix = self.prefix
        return "".join([f"{prefix}.{i} " for i in range(start, end)])

    def _advance(self, choice: Choice, tokens: int) -> tuple[str, FinishReason | None]:
        start, end = choice.next, min(choice.next + tokens, self.end)
        scanner = choice.scanner
        if scanner is None:
            choice.next = end
            return self._text(start, end), "length" if end >= self.end else None
        # what an earlier run did not show may already hold a stop string
        visible, stopped = scanner.feed("")
        while choice.next < end and not stopped:
            piece, stopped = scanner.feed(self._text(choice.next, choice.next + 1))
            visible += piece
            choice.next += 1
        if stopped:
            return visible, "stop"
        if choice.next >= self.end:
            return visible + scanner.feed("", final=True)[0], "length"
        return visible, None

    def _logprobs(self, ids: tuple[int, ...], count: int) -> tuple[TokenLogprob, ...]:
        """Made up, but of the right shape: the chosen token first, then ever less likely ones."""
        found: list[TokenLogprob] = []
        for i in ids:
            token = f"{self.prefix}.{i} "
            top = [(token, -0.1), *((f"other.{k} ", -2.0 - k) for k in range(1, count))]
            found.append(TokenLogprob(token=token, logprob=-0.1, top=tuple(top[:count])))
        return tuple(found)
