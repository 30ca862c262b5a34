"""The reader's rule: which events of a reply partition are visible, and in which order.

API tails, followers and recovering workers read the same log through this one class, so they agree
token by token. In log order:

1. keep the highest epoch per `q` (a fence or an event raises it); drop events of lower epochs;
2. the first valid event of a request binds it to its origin; drop events of other origins;
3. accept Tokens only where `seq` equals the count accepted so far (so what was stored twice, or
   spoken by a run that had fallen behind, changes nothing);
4. the first Started of an (origin, epoch) must go on from exactly what was accepted, otherwise the
   request ends `interrupted`: never spliced;
5. accept a terminal only if it counts what was accepted; drop all that follows it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any

from schemas.replies import (
    Accepted,
    AnyEvent,
    AnyTerminal,
    ErrorInfo,
    Failed,
    Fence,
    Released,
    ReplyRecord,
    Started,
    Terminal,
    Tokens,
)

Key = tuple[str, str]
"""(tenant, request id): another tenant's record under the same id is another request."""

Origin = tuple[str, int]
"""(q, offset): the one published copy of a request that its events speak for."""

Visible = Accepted | Started | Tokens | AnyTerminal


@dataclass(slots=True)
class StreamState:
    """What a reader has accepted of one request. `counts` are tokens per choice."""

    accepted: Accepted | None = None
    origin: Origin | None = None
    epoch: int = -1
    counts: list[int] = field(default_factory=list)
    ended_choices: set[int] = field(default_factory=set)
    started_epochs: set[int] = field(default_factory=set)
    terminal: AnyTerminal | None = None
    gap: bool = False
    """Valid tokens beyond the count were met: the beginning was not read."""
    follower: Any = None
    """What `Reader.watched` answered: who follows the request here."""

    def total(self) -> int:
        """The position that clients see: tokens of all choices accepted so far."""
        return sum(self.counts)

    def copied(self) -> "StreamState":
        """Another reader's own."""
        return replace(
            self,
            counts=list(self.counts),
            ended_choices=set(self.ended_choices),
            started_epochs=set(self.started_epochs),
        )


def key_of(event: AnyEvent | Accepted) -> Key:
    """The identity of the request that an event or `Accepted` names."""
    return event.tenant, event.id


def _everybody(_: Key) -> bool:
    return True


class Reader:
    """Applies the rule to one reply partition.

    `floors` are the epochs known before the first record. With `watched`, only requests for which
    it answers something true are followed; epochs are always kept, so memory is bounded by what is
    watched.
    """

    def __init__(
        self, floors: Mapping[str, int] | None = None, watched: Callable[[Key], Any] | None = None
    ) -> None:
        self.floors: dict[str, int] = dict(floors or {})
        self.states: dict[Key, StreamState] = {}
        self._watched = watched or _everybody

    def forget(self, key: Key) -> None:
        """Drops the state of a request; whoever still asks for it must read from its beginning."""
        self.states.pop(key, None)

    def raise_floor(self, q: str, epoch: int) -> bool:
        """Keeps the highest epoch of `q`; False if `epoch` lies below it."""
        floor = self.floors.get(q, -1)
        if epoch > floor:
            self.floors[q] = epoch
        return epoch >= floor

    def feed(self, record: ReplyRecord) -> list[Visible]:
        """Takes the next record of the partition; returns what became visible, in order."""
        return [event for _, event in self.feed_followed(record)]

    def feed_followed(self, record: ReplyRecord) -> list[tuple[Any, Visible]]:
        """As `feed`, each event with what `watched` answered for its request."""
        if isinstance(record, Fence):
            for q in record.qs:
                self.raise_floor(q, record.epoch)
            return []
        if isinstance(record, Accepted):
            return self._feed_accepted(record)
        return self._feed_events(record.events)

    def _begin(self, key: Key, follower: Any) -> StreamState:
        # the same tenants again and again: one text for all, which is in some cache, not one for each
        state = self.states[intern(key[0]), key[1]] = StreamState(follower=follower)
        return state

    def _feed_accepted(self, record: Accepted) -> list[tuple[Any, Visible]]:
        key = key_of(record)
        state = self.states.get(key)
        if state is None:
            follower = self._watched(key)
            if not follower:
                return []
            state = self._begin(key, follower)
        if state.accepted or state.origin:
            return []
        state.accepted = record
        return [(state.follower, record)]

    def _feed_events(self, events: Iterable[AnyEvent]) -> list[tuple[Any, Visible]]:
        visible: list[tuple[Any, Visible]] = []
        floors, states, watched = self.floors, self.states, self._watched
        for event in events:
            q, epoch = event.q, event.epoch
            floor = floors.get(q, -1)
            if epoch < floor:
                continue
            if epoch > floor:
                floors[q] = epoch
            key = (event.tenant, event.id)
            state = states.get(key)
            if state is None:
                follower = watched(key)
                if not follower:
                    continue
                state = self._begin(key, follower)
            shown = self._accept(state, event)
            if shown is not None:
                visible.append((state.follower, shown))
        return visible

    def _accept(self, state: StreamState, event: AnyEvent) -> Visible | None:
        if state.terminal is not None:
            return None
        origin = (event.q, event.offset)
        if state.origin is None:
            state.origin = (intern(event.q), event.offset)
        elif state.origin != origin:
            return None
        state.epoch = event.epoch
        if type(event) is Tokens:  # most are: the quickest question first
            return event if self._accept_tokens(state, event) else None
        if isinstance(event, Started):
            return self._accept_start(state, event)
        if isinstance(event, Released):
            return None
        return self._accept_terminal(state, event)

    @staticmethod
    def _accept_tokens(state: StreamState, event: Tokens) -> bool:
        counts, choice = state.counts, event.choice
        while len(counts) <= choice:
            counts.append(0)
        count = counts[choice]
        if event.seq != count or choice in state.ended_choices:
            state.gap = state.gap or event.seq > count
            return False
        if not event.token_ids and event.finish_reason is None:
            return False  # without a position of its own, a second copy could not be told apart
        counts[choice] = count + len(event.token_ids)
        if event.finish_reason is not None:
            state.ended_choices.add(choice)
        return True

    @staticmethod
    def _accept_start(state: StreamState, event: Started) -> Visible | None:
        if event.epoch in state.started_epochs:
            return None
        state.started_epochs.add(event.epoch)
        while len(state.counts) < len(event.counts):
            state.counts.append(0)
        if tuple(state.counts) == event.counts:
            return event
        state.gap = state.gap or any(
            said > seen for said, seen in zip(event.counts, state.counts, strict=False)
        )
        error = ErrorInfo(
            code="interrupted", message="The answer could not be continued faithfully."
        )
        state.terminal = Failed(
            id=event.id,
            tenant=event.tenant,
            q=event.q,
            offset=event.offset,
            epoch=event.epoch,
            counts=tuple(state.counts),
            error=error,
        )
        return state.terminal

    @staticmethod
    def _accept_terminal(state: StreamState, event: AnyTerminal) -> AnyTerminal | None:
        counts = tuple(state.counts)
        width = max(len(counts), len(event.counts))
        if counts + (0,) * (width - len(counts)) != event.counts + (0,) * (
            width - len(event.counts)
        ):
            state.gap = state.gap or sum(event.counts) > sum(counts)
            return None
        state.terminal = event
        return event


ALTERNATIVE_BYTES = 128
"""A tuple, a short text and a number."""


def held_bytes(event: Tokens) -> int:
    """About how much memory its text, its ids and its log probabilities take."""
    held = 64 + len(event.text) + 40 * len(event.token_ids)
    if event.logprobs is None:
        return held
    return held + ALTERNATIVE_BYTES * sum(2 + len(it.top) for it in event.logprobs)


def is_terminal(event: Visible) -> bool:
    """True for the one event that ends a request."""
    return type(event) is not Tokens and isinstance(event, Terminal)
