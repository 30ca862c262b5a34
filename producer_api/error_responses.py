"""OpenAI's error form, and the headers that tell a client whether and when to try again."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from core.errors import ERRORS, Refusal
from schemas.replies import AnyTerminal, Cancelled, Expired, Failed

JSON = "application/json"
RETRY_AFTER_SECONDS = 1.0


def error_object(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": refusal.message,
            "type": refusal.kind.type,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def error_headers(refusal: Refusal) -> dict[str, str]:
    """`Retry-After` in seconds, the same in ms for OpenAI's SDK, and its retry switch."""
    headers: dict[str, str] = {}
    after_s = refusal.retry_after_seconds
    if after_s is None and refusal.kind.status == 503:
        after_s = RETRY_AFTER_SECONDS  # such as what a worker's `Failed` says, which names no time
    if after_s is not None:
        headers["Retry-After"] = str(math.ceil(after_s))
        headers["retry-after-ms"] = str(int(after_s * 1000))
    if refusal.kind.retry is not None:
        headers["x-should-retry"] = "true" if refusal.kind.retry else "false"
    if refusal.kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def error_response(refusal: Refusal, more: Mapping[str, str] | None = None) -> Response:
    """The refusal as an HTTP response."""
    return Response(
        orjson.dumps(error_object(refusal)),
        status_code=refusal.kind.status,
        headers={**error_headers(refusal), **(more or {})},
        media_type=JSON,
    )


def refusal_of(terminal: AnyTerminal) -> Refusal | None:
    """A terminal that is not an answer, as the error that the client is told."""
    if isinstance(terminal, Failed):
        code = terminal.error.code if terminal.error.code in ERRORS else "internal_error"
        return Refusal(code, terminal.error.message, param=terminal.error.param)
    if isinstance(terminal, Cancelled):
        return Refusal("cancelled", "The request was cancelled.")
    if isinstance(terminal, Expired):
        what = {"start": "before it could start", "first_token": "before its first token"}
        when = what.get(terminal.deadline, "before it was complete")
        return Refusal("deadline_exceeded", f"The request's time ran out {when}.")
    return None
