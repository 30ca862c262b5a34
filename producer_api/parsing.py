"""From the bytes and headers of an HTTP request to a call that the pipeline takes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from core.errors import Refusal
from core.limits import Limits
from core.validation import MODEL_CHARS_MAX
from schemas.requests import CHAT, COMPLETIONS, Body, Deadlines, Endpoint

from producer_api.conversion import chat_body, completion_body, invalid, tier_of, wants_usage
from producer_api.json_bodies import decode_body, decode_nested, make_decoder
from producer_api.pipeline import Draft, IdempotencyKey
from producer_api.public_types import BackgroundBody, ChatBody, CompletionBody

IDEMPOTENCY_KEY = "Idempotency-Key"
TIMEOUT = "Inferlog-Timeout"
PREFER = "Prefer"

_decode_chat = make_decoder(ChatBody)
_decode_completion = make_decoder(CompletionBody)
_decode_background = make_decoder(BackgroundBody)
_canonical = msgspec.json.Encoder(order="deterministic")

_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x7e]+")
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Call:
    """`resumable`: it runs on when the client goes away (asked for, or because of its key)."""

    draft: Draft
    idempotency: IdempotencyKey | None
    traceparent: str | None
    resumable: bool


def parse_call(
    endpoint: Endpoint, data: bytes, headers: Mapping[str, str], tenant: str, limits: Limits
) -> Call:
    """Checks body and headers of a call on an OpenAI route. Raises Refusal."""
    decoder = _decode_chat if endpoint == CHAT else _decode_completion
    public: ChatBody | CompletionBody = decode_body(data, decoder, limits)
    return _call(public, headers, tenant, limits)


def parse_background(data: bytes, headers: Mapping[str, str], tenant: str, limits: Limits) -> Call:
    """The same for `POST /v1/requests`, whose body names the endpoint. Raises Refusal."""
    outer = decode_body(data, _decode_background, limits)
    if outer.endpoint not in (CHAT, COMPLETIONS):
        raise invalid("endpoint", f"must be {CHAT} or {COMPLETIONS}")
    decoder = _decode_chat if outer.endpoint == CHAT else _decode_completion
    public: ChatBody | CompletionBody = decode_nested(bytes(outer.body), decoder, limits, "body")
    return _call(public, headers, tenant, limits)


def _call(
    public: ChatBody | CompletionBody, headers: Mapping[str, str], tenant: str, limits: Limits
) -> Call:
    if not 1 <= len(public.model) <= MODEL_CHARS_MAX:
        raise invalid("model", f"must be a name of 1 to {MODEL_CHARS_MAX} characters")
    if isinstance(public, ChatBody):
        endpoint, body = CHAT, chat_body(public, limits)
    else:
        endpoint, body = COMPLETIONS, completion_body(public, limits)
    draft = Draft(
        tenant=tenant,
        tier=tier_of(public.service_tier),
        model=public.model,
        endpoint=endpoint,
        body=body,
        deadlines=_deadlines(headers.get(TIMEOUT), limits),
        stream=bool(public.stream),
        include_usage=wants_usage(public),
    )
    wishes = _wishes(headers.get(PREFER))
    key = _idempotency(headers.get(IDEMPOTENCY_KEY), draft, limits, attach="attach" in wishes)
    return Call(
        draft=draft,
        idempotency=key,
        traceparent=_traceparent(headers.get("traceparent")),
        resumable="resumable" in wishes or key is not None,
    )


def _deadlines(text: str | None, limits: Limits) -> Deadlines:
    total_seconds = limits.total_seconds
    if text is not None:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            raise invalid(TIMEOUT, "must be a positive number of seconds")
        total_seconds = min(total_seconds, seconds)  # it lowers, it never raises
    return Deadlines(
        start_seconds=min(limits.start_seconds, total_seconds),
        first_token_seconds=min(limits.first_token_seconds, total_seconds),
        total_seconds=total_seconds,
    )


def _idempotency(
    text: str | None, draft: Draft, limits: Limits, *, attach: bool
) -> IdempotencyKey | None:
    """The draft's payload makes the fingerprint: what is run, not how the answer is fetched."""
    if text is None:
        return None
    key = text.strip()
    if found := _QUOTED.fullmatch(key):
        key = re.sub(r"\\(.)", r"\1", found[1])
    elif not _BARE.fullmatch(key):
        raise invalid(IDEMPOTENCY_KEY, "must be a quoted string, or a bare one without spaces")
    if not 1 <= len(key) <= limits.idempotency_key_chars:
        raise invalid(
            IDEMPOTENCY_KEY, f"must have 1 to {limits.idempotency_key_chars} characters"
        )
    return IdempotencyKey(key, fingerprint(draft.endpoint, draft.model, draft.body), attach)


def fingerprint(endpoint: Endpoint, model: str, body: Body) -> str:
    """SHA-256 (hex) of what is run; tier, deadline and streaming may differ between two tries."""
    return sha256(_canonical.encode((endpoint, model, body))).hexdigest()


def _wishes(text: str | None) -> set[str]:
    """What follows `inferlog=` in `Prefer`; other preferences are not ours to judge."""
    wishes = set()
    for item in (text or "").split(","):
        name, _, value = item.strip().partition("=")
        if name.lower() == "inferlog":
            value = value.strip('"').lower()
            if value not in ("attach", "resumable"):
                raise invalid(PREFER, "knows inferlog=attach and inferlog=resumable")
            wishes.add(value)
    return wishes


def _traceparent(text: str | None) -> str | None:
    """Passed on if it is well formed; a malformed one is no reason to refuse work."""
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None
