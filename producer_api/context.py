"""What a handler needs: the process's parts, and a draft read from an HTTP request."""

import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from core.errors import Refusal
from core.limits import Limits
from producer_api.json_bodies import fingerprint, parse_json
from producer_api.openai_bodies import parse_request
from producer_api.pipeline import Pipeline
from producer_api.response_bodies import parse_response_request
from producer_api.submission import Draft, IdempotencyKey, lowered
from producer_api.tickets import Tickets
from runtime.metrics import Metrics
from schemas.requests import CHAT, COMPLETIONS, RESPONSES, Deadlines, Endpoint, RequestInfo

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The parts of one API process."""

    pipeline: Pipeline
    limits: Limits
    metrics: Metrics
    tickets: Tickets


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it came over HTTP."""

    draft: Draft
    idempotency: IdempotencyKey | None
    resumable: bool
    traceparent: str | None

    @property
    def info(self) -> RequestInfo:
        """What replies repeat of it."""
        it = self.draft
        return RequestInfo(
            endpoint=it.endpoint,
            model=it.model,
            tier=it.tier,
            n=it.body.n,
            stream=it.stream,
            include_usage=it.include_usage,
            total_seconds=it.deadlines.total_seconds,
            response=it.response,
        )

    @property
    def in_background(self) -> bool:
        """A response that is fetched later."""
        return self.draft.response is not None and self.draft.response.background


def context_of(http: HttpRequest) -> ApiContext:
    """The context of this process."""
    context: ApiContext = http.app.state.context
    return context


def read_draft(http: HttpRequest, endpoint: Endpoint, context: ApiContext) -> Incoming:
    """Reads and checks everything before a record is written. Raises Refusal."""
    headers = _headers(http)
    data = _json_of(http, headers, context)
    return _incoming(http, headers, endpoint, data, context)


def read_background(http: HttpRequest, context: ApiContext) -> Incoming:
    """Reads `{"endpoint": …, "body": {…}}`."""
    headers = _headers(http)
    data = _json_of(http, headers, context)
    unknown = set(data) - {"endpoint", "body"}
    if unknown:
        name = min(unknown)[:64]
        raise Refusal("unknown_parameter", f"Unknown parameter: '{name}'.", param=name)
    endpoint, body = data.get("endpoint"), data.get("body")
    if endpoint not in (CHAT, COMPLETIONS, RESPONSES):
        raise Refusal(
            "invalid_request",
            f"'endpoint' must be {CHAT}, {COMPLETIONS} or {RESPONSES}.",
            param="endpoint",
        )
    if not isinstance(body, dict):
        raise Refusal("invalid_request", "'body' must be an object.", param="body")
    return _incoming(http, headers, endpoint, body, context)


def _headers(http: HttpRequest) -> dict[str, str]:
    """By their lower-case names; of those that came twice, the first."""
    pairs = reversed(http.scope["headers"])
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}


def _json_of(http: HttpRequest, headers: dict[str, str], context: ApiContext) -> dict[str, Any]:
    kind, _, rest = headers.get("content-type", "application/json").lower().partition(";")
    charset = rest.strip().removeprefix("charset=").strip('"')
    if kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise Refusal("unsupported_media_type", "Send the body as application/json, in UTF-8.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("unsupported_media_type", "Send the body without a content encoding.")
    return parse_json(http.scope["body"], context.limits)


def _incoming(
    http: HttpRequest,
    headers: dict[str, str],
    endpoint: Endpoint,
    data: dict[str, Any],
    context: ApiContext,
) -> Incoming:
    if endpoint == RESPONSES:
        parsed = parse_response_request(data, context.limits)
    else:
        parsed = parse_request(endpoint, data, context.limits)
    prefer = headers.get("prefer", "")
    wishes = {it.strip().lower() for it in re.split(r"[,;]", prefer)}
    draft = Draft(
        tenant=http.scope["tenant"],
        tier=parsed.tier,
        model=parsed.model,
        endpoint=endpoint,
        body=parsed.body,
        deadlines=_deadlines(headers.get("inferlog-timeout"), context.limits),
        stream=parsed.stream,
        include_usage=parsed.include_usage,
        arrived_s=http.scope.get("arrived_s"),
        response=parsed.echo,
    )
    context.pipeline.check_model(parsed.model)
    key = _idempotency_key(headers.get("idempotency-key"), context.limits)
    idempotency = None
    if key is not None:
        print_of_it = fingerprint(endpoint, data)
        idempotency = IdempotencyKey(key, print_of_it, "inferlog=attach" in wishes)
    traceparent = headers.get("traceparent")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None  # W3C: an invalid one is as none
    return Incoming(draft, idempotency, "inferlog=resumable" in wishes, traceparent)


def _deadlines(header: str | None, limits: Limits) -> Deadlines:
    budgets = Deadlines(
        start_seconds=limits.start_seconds,
        first_token_seconds=limits.first_token_seconds,
        total_seconds=limits.total_seconds,
    )
    if header is None:
        return budgets
    try:
        seconds = float(header)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 1e9:
        raise Refusal(
            "invalid_request",
            "'Inferlog-Timeout' must be a positive number of seconds.",
            param="Inferlog-Timeout",
        )
    return lowered(budgets, seconds)


def _idempotency_key(header: str | None, limits: Limits) -> str | None:
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= limits.idempotency_key_chars or not key.isprintable():
        raise Refusal(
            "invalid_request",
            f"'Idempotency-Key' must have 1 to {limits.idempotency_key_chars} printable characters.",
            param="Idempotency-Key",
        )
    return key
