"""What a refusal tells a client beside its message."""

import pytest

from core.errors import ERRORS, Refusal
from producer_api.error_responses import error_headers, error_object, refusal_of
from schemas.replies import ErrorInfo, Failed

RETRY_LATER = sorted(code for code, kind in ERRORS.items() if kind.status == 503)


def failed(code: str) -> Failed:
    error = ErrorInfo(code=code, message="It failed.")
    return Failed(id="i", tenant="t", q="q/0", offset=0, epoch=0, counts=(0,), error=error)


@pytest.mark.parametrize("code", RETRY_LATER)
def test_a_503_says_when_to_come_back_also_if_a_worker_sent_it(code: str) -> None:
    refusal = refusal_of(failed(code))
    assert refusal is not None
    headers = error_headers(refusal)
    assert (headers["Retry-After"], headers["retry-after-ms"]) == ("1", "1000")


def test_a_time_that_was_named_is_the_one_that_is_told() -> None:
    headers = error_headers(Refusal("overloaded", "Later.", retry_after_seconds=1.5))
    assert (headers["Retry-After"], headers["retry-after-ms"]) == ("2", "1500")


def test_an_error_that_waiting_does_not_mend_names_no_time() -> None:
    assert "Retry-After" not in error_headers(Refusal("invalid_request", "No."))


def test_a_code_that_is_not_documented_is_an_internal_error() -> None:
    refusal = refusal_of(failed("of a later version"))
    assert refusal is not None
    assert refusal.code == "internal_error"
    error = {"message": "It failed.", "type": "server_error", "param": None}
    assert error_object(refusal) == {"error": {**error, "code": "internal_error"}}
