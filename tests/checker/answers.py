"""What is visible of each request, against what the engine says to its prompt."""

from collections.abc import Iterator

from core.errors import Refusal
from core.limits import DEFAULT_LIMITS
from core.validation import check_request
from schemas.ids import parse_request_id
from schemas.replies import Cancelled, Expired, Failed, Finished
from schemas.requests import Body, Deadlines, Request
from tests.checker.history import History, Stored
from tests.checker.plain_reader import Answer, Key
from tests.checker.scripted_answer import Expected, expected_answer
from tests.checker.topics_read import TopicsRead

EARLY_S = 0.1
"""A deadline may be judged by a broker's time that was told this wrong."""


def check_answers(history: History, read: TopicsRead) -> Iterator[str]:
    """Every answer is that of its own request, up to the end or a cut that somebody asked for."""
    for key, answer in read.replies.answers.items():
        for fault in answer.faults:
            yield f"{key[1]}: {fault}"
        if answer.origin is None:
            continue
        request, stored = read.requests.get(answer.origin, (None, None))
        if request is None or stored is None:
            if answer.tokens or not isinstance(answer.terminal, Failed):
                yield f"{key[1]} was answered, and {answer.origin} holds no such request"
        elif (request.tenant, request.id) != key:
            yield f"{key[1]} is bound to {answer.origin}, which is {request.id}"
        else:
            expected = expected_answer(request.body)
            if history.scripted:
                yield from _texts(key, answer, request, expected)
            if not isinstance(answer.terminal, Finished):
                yield from _cut(key, answer, request, stored, read, history)
            elif history.scripted:
                yield from _finish(key, answer.terminal, request, expected)


def _texts(key: Key, answer: Answer, request: Request, expected: Expected) -> Iterator[str]:
    finished = isinstance(answer.terminal, Finished)
    for choice in range(request.body.n):
        ids, text = answer.ids(choice), answer.text(choice)
        if ids != list(range(len(ids))):
            yield f"{key[1]} choice {choice}: tokens {ids}"
        if not expected.text.startswith(text) or len(ids) > expected.tokens:
            yield f"{key[1]} choice {choice}: {text!r}, expected {expected.text!r}"
        if finished and (text != expected.text or len(ids) != expected.tokens):
            yield f"{key[1]} choice {choice} finished with {text!r}, not {expected.text!r}"


def _finish(key: Key, said: Finished, request: Request, expected: Expected) -> Iterator[str]:
    if said.usage.completion_tokens != expected.tokens * request.body.n:
        yield f"{key[1]}: usage says {said.usage.completion_tokens} tokens"
    if said.usage.prompt_tokens != expected.prompt_tokens:
        yield f"{key[1]}: usage says {said.usage.prompt_tokens} prompt tokens"
    if set(said.finish_reasons) != {expected.finish_reason}:
        yield f"{key[1]}: finish reasons {said.finish_reasons}, not {expected.finish_reason}"


def _cut(
    key: Key,
    answer: Answer,
    request: Request,
    stored: Stored,
    read: TopicsRead,
    history: History,
) -> Iterator[str]:
    """An end before the end: nothing here fails by itself, so somebody must have asked for it."""
    said = answer.terminal
    if isinstance(said, Failed):
        if said.error.code == "poison" and is_poison(history, request.body):
            return
        if said.error.code == read.letters.get(answer.origin or ("", 0)) and _is_invalid(request):
            return
        interrupted = said.error.code == "interrupted" and _may_be_interrupted(request.body)
        if not interrupted and not _may_be_out_of_view(answer, said, read):
            yield f"{key[1]} failed with {said.error.code}, though nothing was wrong"
    elif isinstance(said, Cancelled) and key not in read.cancels:
        yield f"{key[1]} is cancelled, and nobody asked for it"
    elif isinstance(said, Expired) and answer.terminal_at is not None:
        age_s = (answer.terminal_at.time_ms - stored.record.time_ms) / 1000
        if age_s < _budget_s(said, request.deadlines) - EARLY_S:
            yield f"{key[1]} expired ({said.deadline}) after {age_s} s"


def _is_invalid(request: Request) -> bool:
    """Whether it asks for what is not allowed: a topic producer's may, and is parked for it."""
    try:
        check_request(request, DEFAULT_LIMITS)
    except Refusal:
        return True
    return False


def _budget_s(said: Expired, budgets: Deadlines) -> float:
    """The least time that must have gone by before this was said."""
    if said.deadline == "start":
        return budgets.start_seconds
    if said.deadline == "first_token":
        return budgets.first_token_seconds
    return budgets.total_seconds


def is_poison(history: History, body: Body) -> bool:
    """Whether a prompt may kill what runs it."""
    texts = [body.prompt or "", *(it.content for it in body.messages or ())]
    return any(marker in text for text in texts for marker in history.poison)


def _may_be_out_of_view(answer: Answer, said: Failed, read: TopicsRead) -> bool:
    """A record that may be a second copy is refused where the log no longer reaches back to its id."""
    if said.error.code != "result_expired" or answer.starts or answer.terminal_at is None:
        return False
    partition = parse_request_id(said.id).reply_partition
    return read.start_of(partition, answer.terminal_at.time_ms) > 0


def _may_be_interrupted(body: Body) -> bool:
    """What not every engine can continue in the middle: penalties, guided decoding."""
    penalties = body.presence_penalty or body.frequency_penalty
    return bool(penalties) or body.response_format is not None
