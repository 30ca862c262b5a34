"""Every documented failure: its code, HTTP status, OpenAI error type, and what the caller can do.

A `Refusal` is the one exception that leaves a decision; edges translate it, nothing else.
"""

from dataclasses import dataclass

from schemas.replies import ErrorInfo


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """`status` is the HTTP status, `type` OpenAI's error type; `retry` None leaves it to the SDK."""

    status: int
    type: str
    retry: bool | None = None


_INVALID = "invalid_request_error"

ERRORS: dict[str, ErrorKind] = {
    "invalid_request": ErrorKind(400, _INVALID),
    "invalid_json": ErrorKind(400, _INVALID),
    "unknown_parameter": ErrorKind(400, _INVALID),
    "unsupported_parameter": ErrorKind(400, _INVALID),
    "context_length_exceeded": ErrorKind(400, _INVALID),
    "invalid_api_key": ErrorKind(401, "authentication_error"),
    "not_found": ErrorKind(404, _INVALID),
    "model_not_found": ErrorKind(404, _INVALID),
    "method_not_allowed": ErrorKind(405, _INVALID),
    "request_timeout": ErrorKind(408, _INVALID),
    "idempotency_in_progress": ErrorKind(409, "conflict_error", retry=False),
    "stream_cursor_expired": ErrorKind(409, "conflict_error", retry=False),
    "result_expired": ErrorKind(410, "gone_error", retry=False),
    "request_too_large": ErrorKind(413, _INVALID),
    "unsupported_media_type": ErrorKind(415, _INVALID),
    "idempotency_key_reused": ErrorKind(422, _INVALID),
    "overloaded": ErrorKind(429, "rate_limit_error"),
    "headers_too_large": ErrorKind(431, _INVALID),
    "cancelled": ErrorKind(499, "cancelled_error", retry=False),
    "internal_error": ErrorKind(500, "server_error"),
    "interrupted": ErrorKind(503, "server_error"),
    "engine_failed": ErrorKind(500, "server_error"),
    "poison": ErrorKind(500, "server_error", retry=False),
    "undecodable": ErrorKind(400, _INVALID),
    "unavailable": ErrorKind(503, "server_error"),
    "no_worker": ErrorKind(503, "server_error"),
    "outcome_unknown": ErrorKind(503, "server_error"),
    "too_many_claims": ErrorKind(503, "server_error"),
    "too_many_streams": ErrorKind(503, "server_error"),
    "shutting_down": ErrorKind(503, "server_error"),
    "deadline_exceeded": ErrorKind(504, "timeout_error", retry=False),
}


class InferlogError(Exception):
    """The base of every error that Inferlog raises on purpose."""


class Refusal(InferlogError):
    """A documented refusal: nothing was done, or what was done is said in the message.

    `code` is a key of `ERRORS`; `param` names the field at fault; `retry_after_seconds` says when a
    retry can help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.kind = ERRORS[code]

    def info(self) -> ErrorInfo:
        """The same, as a record can carry it."""
        return ErrorInfo(code=self.code, message=self.message, param=self.param)
