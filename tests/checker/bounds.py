"""What may grow only so far, and what may be written nowhere."""

from bisect import bisect_right
from collections.abc import Iterator

from core.limits import DEFAULT_LIMITS
from schemas.requests import TIERS
from tests.checker.history import History
from tests.checker.topics_read import TopicsRead
from topics.catalogue import TopicSettings

GAUGES: dict[str, float] = {
    "inferlog_open_streams": DEFAULT_LIMITS.open_streams,
    "inferlog_requests_waiting": DEFAULT_LIMITS.waiting_requests * len(TIERS),
    "inferlog_log_scans_running": DEFAULT_LIMITS.scans_per_partition
    * TopicSettings().reply_partitions,
    "inferlog_claims_live": DEFAULT_LIMITS.claims_per_tenant,
}
"""Of a process that serves one tenant with the default limits and topics."""


def check_spans(history: History, read: TopicsRead) -> Iterator[str]:
    """No offset is begun further from the committed one than a takeover would look."""
    serials: dict[str, list[int]] = {}
    offsets: dict[str, list[int]] = {}
    for commit in history.commits:
        serials.setdefault(commit.q, []).append(commit.serial)
        before = offsets.setdefault(commit.q, [])
        before.append(max(commit.offset, before[-1] if before else 0))
    for (q, offset), (_, at) in read.replies.first.items():
        index = bisect_right(serials.get(q, []), at.serial)
        committed = offsets[q][index - 1] if index else 0
        if at.serial >= 0 and offset >= committed + history.span_offsets:
            yield f"{q}: {offset} was begun when {committed} was committed"


def check_samples(history: History) -> Iterator[str]:
    """What processes say of their queues lies within the bounds of docs/limits.md."""
    for it in history.samples:
        bound = GAUGES.get(it.metric)
        if bound is not None and it.value > bound:
            yield f"{it.process}: {it.metric} is {it.value:.0f}, at most {bound:.0f}"


def check_writings(history: History) -> Iterator[str]:
    """No prompt and no key in a log, a metric or an error."""
    for where, text in history.writings.items():
        found = sum(1 for secret in history.secrets if secret and secret in text)
        if found:
            yield f"{where} holds {found} of {len(history.secrets)} prompts and keys"
