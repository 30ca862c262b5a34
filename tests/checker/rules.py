"""The invariants of the protocol, checked on what a run left behind. Each is a function of its own.

A rule yields sentences; none means that it holds. `check` runs them all.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import ERRORS
from core.offsets import decode_positions
from schemas.replies import Cancelled, Expired, Failed, Finished
from tests.checker.answers import check_answers, is_poison
from tests.checker.bounds import check_samples, check_spans, check_writings
from tests.checker.history import Commit, History
from tests.checker.ownership import check_epochs, check_turns
from tests.checker.plain_reader import Answer, Key
from tests.checker.topics_read import TopicsRead, read_topics
from tests.checker.views import check_views, check_zombies

CANCEL_GRACE_MS = 1_000


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule` is I1 … I13 of the protocol page."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(history: History) -> list[Violation]:
    """All rules. An empty list: everything holds."""
    return judge(history, read_topics(history))


def judge(history: History, read: TopicsRead) -> list[Violation]:
    """The same, where the topics have been read."""
    found = [Violation("I10", text) for text in history.broken]
    for rule, texts in (
        ("I1", _every_request_ends(history, read)),
        ("I2", check_answers(history, read)),
        ("I2", check_views(history, read)),
        ("I3", _keys_run_once(history, read)),
        ("I4", _commits_hold(history, read)),
        ("I4", _usage_is_told(read)),
        ("I5", check_epochs(read)),
        ("I5", check_zombies(history, read)),
        ("I6", check_turns(history, read)),
        ("I7", check_spans(history, read)),
        ("I7", check_samples(history)),
        ("I8", _cancels_end(history, read)),
        ("I9", _garbage_is_parked(read)),
        ("I9", _innocents_are_not(history, read)),
        ("I11", _tenants_are_apart(history, read)),
        ("I12", _failures_are_documented(history)),
        ("I12", _accepted_is_found(history)),
        ("I13", check_writings(history)),
    ):
        found += [Violation(rule, text) for text in texts]
    return found


def _every_request_ends(history: History, read: TopicsRead) -> Iterator[str]:
    for origin, (request, _) in read.requests.items():
        if request is None or origin in read.letters:
            continue
        answer = read.answer((request.tenant, request.id))
        if answer.terminal is None:
            yield f"{request.id} at {origin} never ended: {_shape(answer)}"
    for it in history.attempts:
        if it.action != "submit" or it.result != "ok" or it.request_id is None:
            continue
        if (it.tenant, it.request_id) not in read.by_key:
            yield f"{it.request_id} was accepted (attempt {it.number}) and is on no topic"


def _shape(answer: Answer) -> str:
    starts = [f"{s.counts}@{epoch}" for epoch, (s, _) in answer.starts.items()]
    return f"origin {answer.origin}, tokens {answer.counts}, starts {starts}"


def _keys_run_once(history: History, read: TopicsRead) -> Iterator[str]:
    """One request per key while its claim lives; a claim that lost is void for ever."""
    winners: dict[Key, list[tuple[str, str, int, float]]] = {}
    for claim, append_ms, won in read.claims:
        visible = read.by_key.get((claim.tenant, claim.request_id))
        ends_ms = append_ms + claim.life_seconds * 1000
        if won:
            winners.setdefault((claim.tenant, claim.key), []).append(
                (claim.request_id, claim.fingerprint, append_ms, ends_ms)
            )
        elif visible:
            ids = [it[0] for it in winners.get((claim.tenant, claim.key), [])]
            if claim.request_id not in ids:  # a record that was stored twice loses to itself
                yield f"the claim of {claim.request_id} lost, and it was published at {visible}"
    for it in history.attempts:
        if it.action != "submit" or it.key is None or it.result != "ok" or it.done_ms is None:
            continue
        held = winners.get((it.tenant, it.key), [])
        mine = [w for w in held if w[0] == it.request_id]
        if not mine:
            yield f"attempt {it.number} under {it.key} got {it.request_id}, which claimed nothing"
        elif it.fingerprint is not None and mine[0][1] != it.fingerprint:
            yield f"attempt {it.number} under {it.key} got the answer to another payload"
        elif it.outcome != "new" and it.invoked_ms > mine[0][3] + 1000 + history.clock_error_ms:
            yield f"attempt {it.number} under {it.key} got an answer whose claim had ended"


def _commits_hold(history: History, read: TopicsRead) -> Iterator[str]:
    highest: dict[str, int] = {}
    spoken = _spoken(read)
    for commit in history.commits:
        before = highest.get(commit.q, 0)
        if commit.offset < before:
            yield f"{commit.q}: the commit went back from {before} to {commit.offset}"
        for offset in range(before, commit.offset):
            if text := _not_done(read, (commit.q, offset), commit.serial):
                yield f"{commit.q}: {commit.offset} was committed, and at {offset} {text}"
        highest[commit.q] = max(before, commit.offset)
        yield from _marks_hold(read, spoken, commit)


def _not_done(read: TopicsRead, origin: tuple[str, int], serial: int) -> str | None:
    request, _ = read.requests.get(origin, (None, None))
    if request is None or origin in read.letters:
        return None
    answer = read.answer((request.tenant, request.id))
    if answer.origin is None:
        return f"{request.id} had never begun"
    if answer.origin != origin:
        return None
    if answer.terminal_at is None or answer.terminal_at.serial >= serial >= 0:
        return f"{request.id} had not ended"
    return None


Spoken = dict[tuple[str, int], tuple[list[int], list[tuple[int, int]]]]


def _spoken(read: TopicsRead) -> Spoken:
    """By q and reply partition: offsets, and the first place where one of them or beyond was spoken for.

    (place, offset), so that the thousands of commits of a long run are judged without reading it again.
    """
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for (q, offset), (partition, at) in read.replies.first.items():
        found.setdefault((q, partition), []).append((offset, at.position))
    spoken: Spoken = {}
    for where, pairs in found.items():
        pairs.sort()
        firsts: list[tuple[int, int]] = []
        for offset, place in reversed(pairs):
            firsts.append(min((place, offset), firsts[-1]) if firsts else (place, offset))
        spoken[where] = ([offset for offset, _ in pairs], firsts[::-1])
    return spoken


def _marks_hold(read: TopicsRead, spoken: Spoken, commit: Commit) -> Iterator[str]:
    """The positions of a commit lie at or before the first event of every offset at or beyond it.

    Where retention took that event nobody can find it: they lie at or before what is left.
    """
    q, low = commit.q, commit.offset
    for partition, mark in enumerate(decode_positions(commit.metadata) or ()):
        offsets, firsts = spoken.get((q, partition), ([], []))
        index = bisect_left(offsets, low)
        if index < len(offsets) and firsts[index][0] < mark:
            place, offset = firsts[index]
            start = read.start_of(partition, commit.time_ms)
            if place < start:
                left = [
                    (at.position, other)
                    for (name, other), (index, at) in read.replies.first.items()
                    if (name, index) == (q, partition)
                    and other >= low
                    and start <= at.position < mark
                ]
                if not left:
                    continue
                place, offset = min(left)
            yield (
                f"{q}: a commit of {low} says {mark} for replies/{partition}, and "
                f"offset {offset} was spoken for at {place}"
            )


def _usage_is_told(read: TopicsRead) -> Iterator[str]:
    outcomes = {Finished: "finished", Failed: "failed", Cancelled: "cancelled", Expired: "expired"}
    for key, answer in read.replies.answers.items():
        if answer.terminal is None or answer.origin in read.letters or answer.origin is None:
            continue
        wanted = outcomes[type(answer.terminal)]
        said = [(it.outcome, it.completion_tokens) for it in read.usage.get(answer.origin, [])]
        if (wanted, sum(answer.terminal.counts)) not in said:
            yield f"{key[1]} {wanted} with {answer.terminal.counts}, and usage says {said}"


def _cancels_end(history: History, read: TopicsRead) -> Iterator[str]:
    """Nobody goes on with a request that was cancelled before he took it over."""
    for key, cancelled in read.cancels.items():
        answer = read.answer(key)
        for _, epoch, at in answer.tokens:
            owner = read.acquired.get(epoch)
            if owner is None or owner[1].serial < cancelled.serial:
                continue
            begun = max(owner[1].time_ms, cancelled.time_ms)
            troubled = any(
                fault.from_ms <= at.time_ms and fault.until_ms >= begun - 1000
                for fault in history.faults
            )
            if at.time_ms > begun + CANCEL_GRACE_MS and not troubled:
                yield f"{key[1]} was cancelled, and epoch {epoch}, begun later, goes on with it"
                break


def _garbage_is_parked(read: TopicsRead) -> Iterator[str]:
    for origin, (request, _) in read.requests.items():
        if request is None and origin not in read.letters:
            yield f"what cannot be read at {origin} is no dead letter"


def _innocents_are_not(history: History, read: TopicsRead) -> Iterator[str]:
    """Only what kills its engine is parked as poison, whatever died beside it."""
    for origin, reason in read.letters.items():
        request, _ = read.requests.get(origin, (None, None))
        if reason != "poison" or request is None:
            continue
        if not is_poison(history, request.body):
            yield f"{request.id} at {origin} is parked as poison, and is none"


def _tenants_are_apart(history: History, read: TopicsRead) -> Iterator[str]:
    for it in history.attempts:
        if it.action == "submit" or it.result != "ok" or it.request_id is None:
            continue
        known = (it.tenant, it.request_id)
        if known not in read.by_key and known not in read.replies.answers:
            yield f"attempt {it.number}: {it.tenant} was told of {it.request_id}"


def _failures_are_documented(history: History) -> Iterator[str]:
    for it in history.attempts:
        if it.code is not None and it.code not in ERRORS and it.code != "connection":
            yield f"attempt {it.number} failed with {it.code}"
        if it.done_ms is None:
            yield f"attempt {it.number} ({it.action} of {it.client}) never came to an end"


def _accepted_is_found(history: History) -> Iterator[str]:
    """Whoever was told an id finds its answer from then on, on every replica."""
    if history.trimmed:
        return
    accepted: dict[Key, int] = {}
    for it in history.attempts:
        if it.action == "submit" and it.result == "ok" and it.request_id and it.done_ms:
            accepted.setdefault((it.tenant, it.request_id), it.done_ms)
    for it in history.attempts:
        if it.code in {"not_found", "stream_cursor_expired", "result_expired"}:
            since_ms = accepted.get((it.tenant, it.request_id or ""))
            if it.action != "submit" and since_ms is not None and since_ms <= it.invoked_ms:
                yield f"attempt {it.number} of {it.request_id} was refused with {it.code}"
