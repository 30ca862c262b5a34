"""What clients do: submit, read, hang up, resume elsewhere, retry under a key, cancel, ask.

A client knows only what it was told: the status line, the chunks, or that a connection broke. All of
it goes into the history.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

from producer_api.submission import Draft, IdempotencyKey
from tests.checker.history import Action, Attempt, History, Seen
from tests.simulation.loop import Process, SimLoop
from tests.simulation.replica import Call, Connection, Head, Lost, Refused, Replica
from tests.simulation.showing import Chunk, End

RETRYABLE = {
    "unavailable",
    "outcome_unknown",
    "shutting_down",
    "no_worker",
    "model_not_found",
    "idempotency_in_progress",
    "too_many_claims",
    "too_many_streams",
}
TRIES_MAX = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """One client's request. `leaves_after`: hangs up after so many tokens, again and again."""

    number: int
    at_s: float
    draft: Draft
    mode: str
    """`stream`, `whole`, or `background`."""
    key: str | None = None
    attach: bool = False
    resumable: bool = False
    leaves_after: int | None = None
    cancels_after_s: float | None = None
    patience_s: float = 4.0
    steps_back: int = 0
    """Resumes from so many chunks before the last one it saw."""
    rests: float = 1.0
    """How much longer than others it waits before it asks again."""

    @property
    def name(self) -> str:
        """Of its process."""
        return f"client-{self.number}"

    @property
    def plain(self) -> bool:
        """Whether hanging up cancels the request."""
        return self.key is None and not self.resumable and self.mode != "background"


class Client:
    """Lives one plan."""

    def __init__(
        self,
        loop: SimLoop,
        chance: random.Random,
        plan: Plan,
        history: History,
        replicas: Callable[[], list[Replica]],
        now_ms: Callable[[], int],
        counts: "Counter[str]",
    ) -> None:
        self.plan = plan
        self.process: Process = loop.process(plan.name)
        self.request_id: str | None = None
        self.ended: str | None = None
        self._loop = loop
        self._random = chance
        self._history = history
        self._replicas = replicas
        self._now_ms = now_ms
        self._counts = counts
        self._positions: list[int] = [0]
        self._leaving = plan.leaves_after

    def _count(self, what: str) -> None:
        self._counts[what] += 1

    async def live(self) -> None:
        """From the submit to a terminal, or to where nothing can be known any more."""
        plan = self.plan
        await asyncio.sleep(plan.at_s)
        cancelling = None
        if plan.cancels_after_s is not None:
            cancelling = self._loop.create_task(self._cancel_later(plan.cancels_after_s))
        await self._ask_on()
        if cancelling is not None:
            await cancelling

    async def _ask_on(self) -> None:
        plan = self.plan
        for tried in range(TRIES_MAX):
            if self.request_id is None:
                await self._submit()
            elif plan.mode == "background":
                await self._poll()
            else:
                await self._resume()
            if self.ended is not None:
                return
            # a claim without a request may answer 409 for as long as a run could take
            rest_s = (0.05 + 0.4 * self._random.random()) * (1 + tried / 8)
            await asyncio.sleep(rest_s * plan.rests)
        self._history.broken.append(f"{plan.name} gave up on {self.request_id}")

    # --- one call each

    def _attempt(self, action: Action, replica: Replica) -> Attempt:
        it = Attempt(
            len(self._history.attempts),
            self.plan.name,
            action,
            self.plan.draft.tenant,
            replica.name,
            self._now_ms(),
            request_id=None if action == "submit" else self.request_id,
        )
        self._history.attempts.append(it)
        return it

    def _done(self, it: Attempt, result: str, code: str | None = None) -> None:
        it.result = result  # type: ignore[assignment]  # one of three texts
        it.code = code
        it.done_ms = self._now_ms()

    async def _submit(self) -> None:
        plan = self.plan
        idempotency = None
        fingerprint = sha256(repr((plan.draft.tier, plan.draft.body)).encode()).hexdigest()
        if plan.key is not None:
            idempotency = IdempotencyKey(plan.key, fingerprint, plan.attach)
        replica = self._random.choice(self._replicas())
        it = self._attempt("submit", replica)
        it.key, it.fingerprint, it.attach = plan.key, fingerprint, plan.attach
        call = Call(
            "submit",
            plan.draft.tenant,
            plan.draft,
            idempotency,
            plan.plain,
            follow=plan.mode != "background",
            whole=plan.mode == "whole",
        )
        patience_s = plan.patience_s * (4 if plan.mode == "whole" else 1)
        connection = replica.connect(self.process, call)
        item = await connection.next(patience_s)
        if isinstance(item, Head):
            self.request_id = it.request_id = item.request_id
            it.outcome = item.outcome
            self._count(f"submit {item.outcome}")
            self._done(it, "ok")
            if call.follow:
                it.seen = Seen()
                await self._read(connection, it.seen)
        elif isinstance(item, Refused):
            self._count(f"refused {item.code}")
            self._done(it, "unknown" if item.code == "outcome_unknown" else "refused", item.code)
            if item.code not in RETRYABLE or (plan.key is None and item.code == "outcome_unknown"):
                self.ended = item.code
        else:
            self._count("submit lost")
            self._done(it, "unknown", "connection")
            if plan.key is None:
                self.ended = "unknown"
        connection.close()

    async def _read(self, connection: Connection, seen: Seen) -> None:
        """Until the terminal, the plan's moment to hang up, or the connection's end."""
        plan = self.plan
        got = 0
        while True:
            item = await connection.next(plan.patience_s)
            if isinstance(item, Chunk):
                seen.tokens.append(item.tokens)
                seen.position = item.position
                self._positions.append(item.position)
                got += len(item.tokens.token_ids)
                if self._leaving is not None and got >= self._leaving:
                    self._leaving = None if self._random.random() < 0.5 else self._leaving + 1
                    self._count("hung up")
                    self.ended = "left" if plan.plain else None
                    return
            elif isinstance(item, End):
                seen.terminal, seen.counts, seen.code = item.kind, item.counts, item.code
                self.ended = item.kind
                return
            else:
                self._count("stream broken" if isinstance(item, Lost) else "stream ended early")
                if plan.plain:
                    self.ended = "unknown"
                return

    async def _resume(self) -> None:
        assert self.request_id is not None
        replica = self._random.choice(self._replicas())
        it = self._attempt("resume", replica)
        after = self._positions[max(0, len(self._positions) - 1 - self.plan.steps_back)]
        call = Call("resume", self.plan.draft.tenant, request_id=self.request_id, after=after)
        connection = replica.connect(self.process, call)
        item = await connection.next(self.plan.patience_s)
        if isinstance(item, Head):
            self._count("resumed" if after else "read again")
            del self._positions[self._positions.index(after) + 1 :]
            it.seen = Seen(after=after)
            await self._read(connection, it.seen)
            self._done(it, "ok")
        elif isinstance(item, Refused):
            self._count(f"refused {item.code}")
            self._done(it, "refused", item.code)
            if item.code not in RETRYABLE:
                self.ended = item.code
        else:
            self._done(it, "unknown", "connection")
        connection.close()

    async def _poll(self) -> None:
        assert self.request_id is not None
        it, item, seen = await self._ask("status", self.plan.draft.tenant)
        if isinstance(item, Head):
            if item.state not in ("queued", "in_progress"):
                it.seen = seen
                self.ended = item.state
        elif isinstance(item, Refused) and item.code not in RETRYABLE:
            self.ended = item.code

    async def _ask(self, action: Action, tenant: str) -> tuple[Attempt, object, Seen]:
        """One question about the request; the connection stays open until it is answered."""
        assert self.request_id is not None
        replica = self._random.choice(self._replicas())
        it = self._attempt(action, replica)
        it.tenant = tenant
        call = Call(action, tenant, request_id=self.request_id)
        connection = replica.connect(self.process, call)
        head = await connection.next(self.plan.patience_s + 6.0)
        seen = Seen()
        if isinstance(head, Head):
            it.state = head.state
            done = head.state not in ("queued", "in_progress") and action == "status"
            while done and seen.terminal is None:
                item = await connection.next(1.0)
                if isinstance(item, Chunk):
                    seen.tokens.append(item.tokens)
                elif isinstance(item, End):
                    seen.terminal, seen.counts, seen.code = item.kind, item.counts, item.code
                else:
                    break  # expired without a terminal, or the connection broke
            self._done(it, "ok")
        elif isinstance(head, Refused):
            self._count(f"refused {head.code}")
            self._done(it, "refused", head.code)
        else:
            self._done(it, "unknown", "connection")
        connection.close()
        return it, head, seen

    async def _cancel_later(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        for _ in range(10):
            if self.request_id is not None:
                _, head, _ = await self._ask("cancel", self.plan.draft.tenant)
                if not isinstance(head, Refused) or head.code not in RETRYABLE:
                    return
            await asyncio.sleep(0.3)

    async def look_back(self) -> None:
        """Reads the whole answer once more, from the log."""
        self._positions, self._leaving, self.ended = [0], None, None
        self._count("looked back")
        await self._resume()

    async def pry(self, tenant: str) -> None:
        """Another tenant asks for this request, and tries to cancel it: it must learn nothing."""
        if self.request_id is not None:
            self._count("pried")
            action: Action = "status" if self._random.random() < 0.5 else "cancel"
            await self._ask(action, tenant)


def same_request(plan: Plan, number: int, at_s: float) -> Plan:
    """Another client with the same key and payload."""
    return replace(plan, number=number, at_s=at_s, cancels_after_s=None, leaves_after=None)
