"""What a new owner makes of what older owners said: the fold of `replies`, and its verdicts.

Only suspects are asked about: offsets between the committed one and the end of the request
partition at the time of the fence. Later ones nobody can have spoken for.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from core.epochs import FenceLog
from core.poison import Life, Owners
from core.runs import Feature, Logged
from core.stream import Key, Origin, Reader, Visible
from schemas.replies import (
    Accepted,
    AnyTerminal,
    Events,
    FinishReason,
    Released,
    ReplyRecord,
    Started,
    Terminal,
    TokenLogprob,
    Tokens,
)
from schemas.requests import Body


@dataclass(slots=True)
class ChoiceLog:
    """The accepted tokens of one choice, and their visible text."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def logged(self) -> Logged:
        """As a run takes it."""
        return Logged(tuple(self.token_ids), "".join(self.texts), self.finish_reason)


@dataclass(frozen=True, slots=True)
class Done:
    """Complete the offset without running it: it ended, or it is bound to another origin.

    `terminal` is set if this very origin ended, so that usage can be said again.
    """

    terminal: AnyTerminal | None = None
    started: Started | None = None


@dataclass(frozen=True, slots=True)
class RunFresh:
    """Nothing was visible: run it from the beginning. `starts`: how often it died (`core.poison`)."""

    starts: int = 0
    spoken: bool = False
    """An event of this very offset was met, so its events may be the visible ones: it must run."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on from the logged tokens."""

    logged: tuple[Logged, ...]
    starts: int
    spoken: bool = True


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Cannot be continued faithfully: end it as `interrupted`, retryable."""

    counts: tuple[int, ...]
    reason: str
    starts: int = 0


Verdict = Done | RunFresh | Resume | Interrupt


def unfaithful(body: Body, resumes: AbstractSet[Feature]) -> Feature | None:
    """What of a run that was cut off in the middle cannot be continued; None if all of it can.

    `resumes`: what the engine continues faithfully. It is given the earlier output as a part of its
    prompt, so it must be made to count it as output (penalties), and to take it as the beginning of
    the grammar (guided decoding).
    """
    if body.response_format is not None and "response_format" not in resumes:
        return "response_format"
    if (body.presence_penalty or body.frequency_penalty) and "penalties" not in resumes:
        return "penalties"
    return None


class Fold:
    """Folds one reply partition for the request partitions in `qs`.

    Content is kept only for requests bound to those; of others only what they are bound to. `owners`
    tells which of the older owners are still alive.
    """

    def __init__(
        self,
        partition: int,
        reader: Reader,
        qs: frozenset[str],
        truncated: bool = False,
        owners: Owners | None = None,
    ) -> None:
        self.partition = partition
        self.reader = reader
        self.truncated = truncated
        self.first: dict[Origin, int] = {}
        self.lives: dict[Origin, Life] = {}
        self._owners: Owners = owners or FenceLog()
        self._qs = qs
        self._choices: dict[Key, list[ChoiceLog]] = {}
        self._started: dict[Key, Started] = {}

    def feed(self, position: int, record: ReplyRecord) -> None:
        """Takes the record at `position`."""
        if isinstance(record, Accepted):
            return  # binds nothing; for a fold it says nothing
        if isinstance(record, Events):
            for event in record.events:
                if event.q in self._qs:
                    origin = (event.q, event.offset)
                    # any event of it, valid or not: somebody had started it
                    self.first.setdefault(origin, position)
                    if isinstance(event, Started):
                        self.lives.setdefault(origin, Life()).started(event)
                    elif isinstance(event, Released) and origin in self.lives:
                        self.lives[origin].released(event.epoch)
        for visible in self.reader.feed(record):
            self._keep(visible)

    def _keep(self, event: Visible) -> None:
        if isinstance(event, Accepted) or event.q not in self._qs:
            return
        key = (event.tenant, event.id)
        if isinstance(event, Terminal):
            self._choices.pop(key, None)
        elif isinstance(event, Started):
            self._started[key] = event
        elif isinstance(event, Tokens):
            if event.token_ids and (life := self.lives.get((event.q, event.offset))):
                life.progressed(event.epoch)
            choices = self._choices.setdefault(key, [])
            while len(choices) <= event.choice:
                choices.append(ChoiceLog())
            choice = choices[event.choice]
            choice.token_ids.extend(event.token_ids)
            choice.texts.append(event.text)
            choice.logprobs.extend(event.logprobs or ())
            choice.finish_reason = event.finish_reason or choice.finish_reason

    def deaths(self, origin: Origin) -> int:
        """How often the suspect at `origin` died without coming any further."""
        life = self.lives.get(origin)
        return life.deaths(self._owners) if life else 0

    def verdict(
        self, key: Key, origin: Origin, body: Body, resumes: AbstractSet[Feature] = frozenset()
    ) -> Verdict:
        """What to do with the suspect at `origin` whose record names `key`.

        `resumes`: the features that the engine at hand continues faithfully.
        """
        starts = self.deaths(origin)
        state = self.reader.states.get(key)
        if state is None or state.origin is None:
            return RunFresh(starts, spoken=origin in self.first)
        if state.origin != origin:
            return Done()
        if state.terminal is not None:
            return Done(state.terminal, self._started.get(key))
        if state.gap:
            # beyond retention the beginning is gone; anywhere else this is a fault of ours
            reason = "expired_log" if self.truncated else "missing_beginning"
            return Interrupt(tuple(state.counts), reason, starts)
        if not state.total() and not state.ended_choices:
            return RunFresh(starts, spoken=True)
        if why := unfaithful(body, resumes):
            return Interrupt(tuple(state.counts), why, starts)
        choices = self._choices.get(key, [])
        choices += [ChoiceLog() for _ in range(body.n - len(choices))]
        return Resume(tuple(choice.logged() for choice in choices), starts)
