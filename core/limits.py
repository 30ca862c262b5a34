"""Every bound, in one place. Each is a setting (`INFERLOG_LIMIT_<NAME>`), checked at start.

The same table stands in `docs/limits.md`; a test compares the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Units are the last word of each name. Beyond a bound comes the status in the comment."""

    # what a client sends
    body_bytes: int = 1024 * 1024  # 413
    headers_bytes: int = 32 * 1024  # 431
    headers_count: int = 100  # 431
    receive_seconds: float = 10.0  # 408, then close
    pipelined_requests: int = 8  # not taken: the connection closes behind those that were
    json_depth: int = 32  # 400
    messages_count: int = 1024  # 400
    text_bytes: int = 512 * 1024  # 400: text of all messages, or the prompt
    n: int = 8  # 400
    top_logprobs: int = 20  # 400
    answer_logprobs: int = 512 * 1024  # 400: n x max_tokens x (1 + top logprobs)
    stop_count: int = 16  # 400
    stop_chars: int = 256  # 400
    logit_bias_count: int = 1024  # 400
    metadata_count: int = 16  # 400
    metadata_chars: int = 512  # 400
    user_chars: int = 512  # 400
    max_tokens_default: int = 1024
    max_tokens: int = 131_072  # 400; the model's context bounds it further
    schema_bytes: int = 64 * 1024  # 400
    schema_depth: int = 16  # 400
    schema_compile_seconds: float = 2.0  # 400
    idempotency_key_chars: int = 255  # 400

    # how long things may take
    start_seconds: float = 30.0  # 504
    first_token_seconds: float = 35.0  # 504
    total_seconds: float = 600.0  # 504
    batch_total_seconds: float = 24 * 3600.0  # expired
    deadline_margin_seconds: float = 5.0  # an API's own answer, after the worker's
    first_byte_seconds: float = 5.0  # then 200, and errors come as events
    publish_seconds: float = 5.0  # 503: refused, or outcome unknown
    no_worker_seconds: float = 30.0  # 503: a known model without a live worker
    heartbeat_seconds: float = 15.0
    stalled_seconds: float = 60.0  # the connection ends
    clock_skew_seconds: float = 30.0
    reply_retention_seconds: float = 3600.0  # how long `replies` keeps an answer

    # idempotency
    claim_life_seconds: float = 3600.0
    claim_lease_seconds: float = 10.0
    claims_per_tenant: int = 100_000  # 503

    # what may be poison
    starts_max: int = 3  # deaths in a row, then parked as `poison`
    alone_hold_seconds: float = 10.0  # others wait so long for a request that must run alone

    # what a process holds
    open_streams: int = 20_000  # 503, per API replica
    scans_per_tenant: int = 2  # waits
    mailbox_events: int = 1024  # then reads on from the log
    mailbox_bytes: int = 256 * 1024
    span_offsets: int = 16_384  # started offsets beyond the committed one, per request partition
    waiting_requests: int = 256  # taken from the log and not yet started, per worker
    cancelled_ids: int = 100_000  # cancels of requests not met yet, per worker

    def __post_init__(self) -> None:
        if self.starts_max < 2:
            raise ValueError("starts_max: at least 2, or the first death beside poison would park")
        if self.alone_hold_seconds <= 0:
            raise ValueError("alone_hold_seconds: more than 0")


DEFAULT_LIMITS = Limits()
