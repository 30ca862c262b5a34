"""The reader's rule and the claims' rule once more, written from the protocol and not from the core.

The core's `Reader` and `ClaimBook` are what is under test, so the checker must not judge with them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.operations import Claim
from schemas.replies import (
    Accepted,
    AnyEvent,
    AnyTerminal,
    Events,
    Fence,
    Released,
    ReplyRecord,
    Started,
    Terminal,
    Tokens,
)
from tests.checker.history import SeenTokens

Key = tuple[str, str]
Origin = tuple[str, int]


@dataclass(frozen=True, slots=True)
class At:
    """Where something lies: append order over everything, position in its partition, time."""

    serial: int
    position: int
    time_ms: int


@dataclass(slots=True)
class Answer:
    """What every reader must see of one request."""

    origin: Origin | None = None
    accepted: Accepted | None = None
    counts: dict[int, int] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    tokens: list[tuple[SeenTokens, int, At]] = field(default_factory=list)
    """Each with the epoch that said it."""
    starts: dict[int, tuple[Started, At]] = field(default_factory=dict)
    runs: int = 0
    """How often it was begun, or gone on with."""
    terminal: AnyTerminal | None = None
    terminal_at: At | None = None
    hidden: list[SeenTokens] = field(default_factory=list)
    """What older owners said behind fences."""
    faults: list[str] = field(default_factory=list)

    def text(self, choice: int) -> str:
        """Visible text of a choice."""
        return "".join(it.text for it, _, _ in self.tokens if it.choice == choice)

    def ids(self, choice: int) -> list[int]:
        """Token ids of a choice."""
        return [i for it, _, _ in self.tokens if it.choice == choice for i in it.token_ids]


class Replies:
    """All of `replies`, read from its first record on."""

    def __init__(self) -> None:
        self.answers: dict[Key, Answer] = {}
        self.first: dict[Origin, tuple[int, At]] = {}
        """Of each origin the reply partition and place of its first valid event, visible or not."""
        self.hidden = 0
        """Events that an older owner said behind a fence."""
        self.elsewhere = 0
        """Events of copies that are not the visible one."""
        self.voices: dict[tuple[str, int], set[str]] = {}
        """Who spoke validly for a request partition in an epoch."""
        self.unfenced: dict[tuple[str, int], At] = {}
        """Epochs that spoke validly for one where no fence of theirs lay before."""
        self._floors: dict[int, dict[str, int]] = {}
        self._fenced: set[tuple[int, str, int]] = set()

    def feed(self, partition: int, at: At, record: ReplyRecord, sender: str = "") -> None:
        """The next record of a partition; `sender` is the process that wrote it, if that is known."""
        floors = self._floors.setdefault(partition, {})
        if isinstance(record, Fence):
            for q in record.qs:
                floors[q] = max(floors.get(q, -1), record.epoch)
                self._fenced.add((partition, q, record.epoch))
        elif isinstance(record, Accepted):
            answer = self.answers.setdefault((record.tenant, record.id), Answer())
            if answer.accepted is None:
                answer.accepted = record
        elif isinstance(record, Events):
            for event in record.events:
                if event.epoch < floors.get(event.q, -1):
                    self.hidden += 1
                    self._keep_hidden(event)
                    continue
                floors[event.q] = event.epoch
                self._hear(partition, at, event, sender)
                self.first.setdefault((event.q, event.offset), (partition, at))
                self._take(self.answers.setdefault((event.tenant, event.id), Answer()), event, at)

    def _hear(self, partition: int, at: At, event: AnyEvent, sender: str) -> None:
        voice = (event.q, event.epoch)
        if (partition, *voice) not in self._fenced:
            self.unfenced.setdefault(voice, at)
        voices = self.voices.setdefault(voice, set())
        if sender:
            voices.add(sender)
        elif isinstance(event, Started):
            voices.add(event.worker)

    def _keep_hidden(self, event: AnyEvent) -> None:
        if isinstance(event, Tokens):
            answer = self.answers.setdefault((event.tenant, event.id), Answer())
            answer.hidden.append(_seen(event))

    def _take(self, answer: Answer, event: AnyEvent, at: At) -> None:
        if answer.terminal is not None:
            return
        origin = (event.q, event.offset)
        if answer.origin is None:
            answer.origin = origin
        if answer.origin != origin:
            self.elsewhere += 1
        elif isinstance(event, Tokens):
            self._take_tokens(answer, event, at)
        elif isinstance(event, Started):
            answer.runs += 1
            if event.epoch not in answer.starts:
                answer.starts[event.epoch] = (event, at)
                if tuple(event.counts) != _padded(answer.counts, len(event.counts)):
                    answer.faults.append(
                        f"epoch {event.epoch} goes on from {event.counts}, visible are "
                        f"{answer.counts}"
                    )
        elif isinstance(event, Terminal):
            width = max(len(event.counts), max(answer.counts, default=-1) + 1)
            said = tuple(event.counts) + (0,) * (width - len(event.counts))
            if said == _padded(answer.counts, width):
                answer.terminal, answer.terminal_at = event, at
        else:
            assert isinstance(event, Released)

    @staticmethod
    def _take_tokens(answer: Answer, event: Tokens, at: At) -> None:
        count = answer.counts.get(event.choice, 0)
        if event.seq > count:
            answer.faults.append(f"token {event.seq} of choice {event.choice} follows {count}")
        if event.seq != count or event.choice in answer.ended:
            return
        if not event.token_ids and event.finish_reason is None:
            return
        answer.counts[event.choice] = count + len(event.token_ids)
        if event.finish_reason is not None:
            answer.ended[event.choice] = event.finish_reason
        answer.tokens.append((_seen(event), event.epoch, at))


def _seen(event: Tokens) -> SeenTokens:
    return SeenTokens(event.choice, event.seq, event.token_ids, event.text, event.finish_reason)


def _padded(counts: dict[int, int], width: int) -> tuple[int, ...]:
    return tuple(counts.get(choice, 0) for choice in range(width))


def judge_claims(claims: Iterable[tuple[int, Claim]]) -> list[tuple[Claim, int, bool]]:
    """(append time, claim) in log order -> (claim, append time, won)."""
    judged: list[tuple[Claim, int, bool]] = []
    ends: dict[tuple[str, str], float] = {}
    for append_ms, claim in claims:
        key = (claim.tenant, claim.key)
        won = ends.get(key, float("-inf")) <= append_ms
        judged.append((claim, append_ms, won))
        ends[key] = max(ends.get(key, 0.0), append_ms + claim.life_seconds * 1000)
    return judged
