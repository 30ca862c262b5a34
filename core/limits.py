"""Every bound, in one place. Each is a setting (`INFERLOG_LIMIT_<NAME>`), checked at start.

The same table stands in `docs/limits.md`, with what lies beyond each bound; a test compares the two.
"""

from dataclasses import dataclass, field
from typing import TypeVar

N = TypeVar("N", int, float)


def _bound(default: N, unit: str, *, least: float = 1) -> N:
    """A field; `unit` is what `--help` says it counts, `least` what may be set at least."""
    return field(default=default, metadata={"unit": unit, "min": least})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The unit is the last word of most names."""

    # what a client sends
    body_bytes: int = _bound(1024 * 1024, "bytes")
    headers_bytes: int = _bound(
        32 * 1024,
        "bytes, names and values together; as much, in a row, around and behind the chunks of a body",
    )
    headers_count: int = _bound(100, "headers")
    receive_seconds: float = _bound(
        10.0, "seconds, for the head, and again for the body", least=0.1
    )
    pipelined_requests: int = _bound(
        8, "requests sent on one connection behind one that is being answered", least=0
    )
    json_depth: int = _bound(32, "levels")
    messages_count: int = _bound(1024, "messages")
    text_bytes: int = _bound(512 * 1024, "bytes of UTF-8: all messages, or the prompt")
    n: int = _bound(8, "choices")
    top_logprobs: int = _bound(20, "alternatives per token", least=0)
    answer_logprobs: int = _bound(
        512 * 1024, "log probabilities in one answer: n x max_tokens x (1 + top_logprobs)"
    )
    stop_count: int = _bound(16, "stop strings", least=0)
    stop_chars: int = _bound(256, "characters of one stop string")
    logit_bias_count: int = _bound(1024, "entries", least=0)
    metadata_count: int = _bound(16, "pairs", least=0)
    metadata_chars: int = _bound(512, "characters of a value")
    user_chars: int = _bound(512, "characters")
    echo_bytes: int = _bound(
        8192, "bytes, as JSON, of a response's instructions, and of its text.format"
    )
    max_tokens_default: int = _bound(1024, "tokens")
    max_tokens: int = _bound(131_072, "tokens")
    schema_bytes: int = _bound(64 * 1024, "bytes of a JSON schema, estimated while it is walked")
    schema_depth: int = _bound(16, "levels of a JSON schema")
    schema_compile_seconds: float = _bound(
        2.0, "seconds of a clock, on the worker (vLLM alone), and 2 GiB of memory", least=0.1
    )
    idempotency_key_chars: int = _bound(255, "characters")

    # how long things may take
    start_seconds: float = _bound(
        30.0, "seconds from append to the first start; not for batch", least=0.1
    )
    first_token_seconds: float = _bound(
        35.0, "seconds from the latest start to the first new token", least=0.1
    )
    total_seconds: float = _bound(600.0, "seconds from append to the end", least=0.1)
    batch_total_seconds: float = _bound(
        24 * 3600.0, "seconds from append to the end, for the batch tier", least=0.1
    )
    deadline_margin_seconds: float = _bound(
        5.0, "seconds that the API waits on top before it answers by itself", least=0
    )
    first_byte_seconds: float = _bound(
        5.0, "seconds without an event before the status line leaves", least=0.1
    )
    publish_seconds: float = _bound(5.0, "seconds until the broker has acknowledged", least=0.1)
    no_worker_seconds: float = _bound(
        30.0, "seconds without a live worker for a model that was once announced", least=0.1
    )
    heartbeat_seconds: float = _bound(15.0, "seconds of silence on a stream")
    stalled_seconds: float = _bound(
        60.0, "seconds in which a client takes nothing of what waits to be sent to it", least=0.1
    )
    clock_skew_seconds: float = _bound(30.0, "seconds that two clocks may differ", least=0)
    reply_retention_seconds: float = _bound(
        3600.0, "seconds that replies keeps an answer; a run may take half of it", least=0.1
    )
    ticket_seconds: float = _bound(
        60.0, "seconds that a ticket for one stream can be used", least=0.1
    )

    # idempotency
    claim_life_seconds: float = _bound(
        3600.0, "seconds, at least twice total_seconds and the margin", least=0.1
    )
    claim_lease_seconds: float = _bound(
        10.0, "seconds from an id's time to its record's append", least=0
    )
    claims_per_tenant: int = _bound(100_000, "live claims")

    # what may be poison
    starts_max: int = _bound(
        3,
        "deaths in a row of a request's worker or engine, at least 2; the last of them with nothing beside it",
        least=2,
    )
    alone_hold_seconds: float = _bound(
        10.0, "seconds that other starts are held back for a request that must run alone", least=0.1
    )

    # what a process holds
    open_streams: int = _bound(20_000, "streams per API replica")
    scans_per_tenant: int = _bound(
        2,
        "log scans at once per tenant that have not caught up, in one API replica",
    )
    scans_per_partition: int = _bound(
        3,
        "readers of one reply partition, shared by all answers read back from it, in one API replica",
    )
    result_cache_seconds: float = _bound(300.0, "seconds from the end of an answer", least=0)
    result_cache_bytes: int = _bound(
        64 * 1024 * 1024,
        "bytes of memory, about: answers kept, and those on their way, per API replica",
        least=0,
    )
    result_cache_answer_bytes: int = _bound(
        8 * 1024 * 1024, "bytes of memory, about, that one kept answer takes while it is read"
    )
    deleted_ids: int = _bound(100_000, "requests deleted within the retention of an answer")
    tickets: int = _bound(100_000, "tickets used within their life")
    mailbox_events: int = _bound(1024, "events of one stream not yet sent")
    mailbox_bytes: int = _bound(256 * 1024, "bytes of one stream not yet sent")
    span_offsets: int = _bound(16_384, "offsets from the committed one, per request partition")
    waiting_requests: int = _bound(
        256, "requests of one tier taken from the log and not started, per worker"
    )
    cancelled_ids: int = _bound(100_000, "cancels of requests not met yet, per worker")

    def __post_init__(self) -> None:
        if self.starts_max < 2:
            raise ValueError("starts_max: at least 2, or the first death beside poison would park")
        if self.alone_hold_seconds <= 0:
            raise ValueError("alone_hold_seconds: more than 0")
        if self.total_seconds > self.reply_retention_seconds / 2:
            raise ValueError(
                f"total_seconds ({self.total_seconds:g}) is more than half of "
                f"reply_retention_seconds ({self.reply_retention_seconds:g}): the beginning of an "
                "answer could be gone before its end"
            )


DEFAULT_LIMITS = Limits()
