"""What clients saw, against what every reader must see."""

from collections.abc import Iterator

from schemas.replies import Cancelled, Expired, Failed, Finished
from tests.checker.history import Attempt, History, SeenTokens
from tests.checker.plain_reader import Answer
from tests.checker.topics_read import TopicsRead

KINDS = {Finished: "finished", Failed: "failed", Cancelled: "cancelled", Expired: "expired"}


def check_views(history: History, read: TopicsRead) -> Iterator[str]:
    """Each connection showed a row of the visible events from its position on, and no other."""
    for it in history.attempts:
        if it.seen is None or it.request_id is None:
            continue
        answer = read.answer((it.tenant, it.request_id))
        yield from _check_view(it, answer)


def _check_view(it: Attempt, answer: Answer) -> Iterator[str]:
    seen = it.seen
    assert seen is not None
    wanted = _from_position(answer, seen.after)
    where = f"attempt {it.number} of {it.client} on {it.replica}, {it.request_id}"
    if seen.text is not None:
        shown, text = _up_to(answer, seen.after, seen.position)
        if seen.text != text:
            yield f"{where}: read {seen.text[-80:]!r} from {seen.after}, visible: {text[-80:]!r}"
            return
    else:
        shown = len(seen.tokens)
    if seen.tokens != wanted[: len(seen.tokens)]:
        yield f"{where}: saw {_short(seen.tokens)} from {seen.after}, visible: {_short(wanted)}"
        return
    if seen.terminal is None:
        return
    if answer.terminal is None:
        if seen.terminal != "expired":  # of the replica's own, when all time has run out
            yield f"{where}: was told {seen.terminal}, and nothing has ended"
        return
    said = KINDS[type(answer.terminal)]
    if seen.terminal != said:
        yield f"{where}: was told {seen.terminal}, the log says {said}"
    elif shown != len(wanted):
        yield f"{where}: ended after {_short(wanted[:shown])}, visible: {_short(wanted)}"


def check_zombies(history: History, read: TopicsRead) -> Iterator[str]:
    """Nobody saw what lies behind a fence."""
    for it in history.attempts:
        if it.seen is None or it.request_id is None:
            continue
        answer = read.answer((it.tenant, it.request_id))
        visible = _from_position(answer, 0)
        for seen in it.seen.tokens:
            if seen not in visible and seen in answer.hidden:
                yield f"attempt {it.number} of {it.client}: saw {seen.choice}:{seen.seq} of a zombie"


def _from_position(answer: Answer, after: int) -> list[SeenTokens]:
    total, found = 0, []
    for event, _, _ in answer.tokens:
        total += len(event.token_ids)
        if total > after or (total == after and not event.token_ids):
            found.append(event)
    return found


def _up_to(answer: Answer, after: int, position: int) -> tuple[int, str]:
    """How many events lie between two positions, and their text."""
    total, shown, text = 0, 0, ""
    for event, _, _ in answer.tokens:
        total += len(event.token_ids)
        beyond = total > after or (total == after and not event.token_ids)
        if beyond and total <= position:
            shown += 1
            text += event.text
    return shown, text


def _short(events: list[SeenTokens]) -> str:
    return " ".join(f"{it.choice}:{it.seq}+{len(it.token_ids)}" for it in events) or "nothing"
