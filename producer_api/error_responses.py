"""Every failure as clients see it: OpenAI's error object, and headers that say whether to retry."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import Refusal

RETRY_AFTER_SECONDS = 2.0
"""Told on 429 and 503 where nothing better is known."""

_HTTP_CODES = {
    404: ("not_found", "There is nothing at this path: see /docs for the routes."),
    405: ("method_not_allowed", "This path does not take this method."),
}


def new_answer_id() -> str:
    """An `X-Request-Id` for an answer that belongs to no request."""
    return str(uuid.uuid4())


def error_json(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    return {
        "error": {
            "message": refusal.message,
            "type": refusal.kind.type,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def retry_headers(refusal: Refusal) -> dict[str, str]:
    """When a retry can help, and whether the SDK should try by itself."""
    headers: dict[str, str] = {}
    seconds = refusal.retry_after_seconds
    if seconds is None and refusal.kind.status in (429, 503):
        seconds = RETRY_AFTER_SECONDS
    if seconds is not None:
        headers["retry-after"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    if refusal.kind.retry is not None:
        headers["x-should-retry"] = "true" if refusal.kind.retry else "false"
    return headers


def error_response(
    refusal: Refusal, request_id: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The whole answer; `request_id` if it belongs to an accepted request."""
    all_headers = {**retry_headers(refusal), **(headers or {})}
    if request_id is not None:
        all_headers["x-request-id"] = request_id
    if refusal.kind.status == 401:
        all_headers["www-authenticate"] = "Bearer"
    return Response(
        orjson.dumps(error_json(refusal)),
        status_code=refusal.kind.status,
        headers=all_headers,
        media_type="application/json",
    )


async def on_refusal(_: Request, error: Exception) -> Response:
    """The handler of `Refusal`."""
    assert isinstance(error, Refusal)
    return error_response(error)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code, message = _HTTP_CODES.get(
        error.status_code, ("invalid_request", "The request cannot be served as it is.")
    )
    return error_response(Refusal(code, message), headers=error.headers)


async def on_fault(_: Request, __: Exception) -> Response:
    """A fault of ours: the log has it, the client gets no details."""
    return error_response(Refusal("internal_error", "Something went wrong here, not with you."))
