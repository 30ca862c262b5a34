"""Headers of records: CloudEvents (Kafka binding, binary mode), trace context, and our own.

The id, the tenant and the reply information of a request travel in headers as well as in its body:
a body that cannot be parsed can then still be answered with `Failed`, and one that kills its parser
can be started, so that the death is counted.
"""

from datetime import UTC, datetime
from functools import lru_cache

Headers = tuple[tuple[str, bytes], ...]

REQUEST_ID = "inferlog-request-id"
TENANT = "inferlog-tenant"
REQUEST_INFO = "inferlog-request-info"
START_SECONDS = "inferlog-start-seconds"
SIGNATURE = "inferlog-signature"  # reserved: not yet checked
KEY_ID = "inferlog-key-id"  # reserved: not yet checked
TRACEPARENT = "traceparent"
CONTENT_TYPE = "content-type"

_JSON = b"application/json"


def cloud_event(kind: str, record_id: str, source: str, time_ms: int) -> Headers:
    """The CloudEvents attributes of a record of `kind` (such as `inferlog.request.v1`)."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", record_id.encode()),
        ("ce_type", kind.encode()),
        ("ce_source", source.encode()),
        ("ce_time", _moment(time_ms)),
        (CONTENT_TYPE, _JSON),
    )


@lru_cache(maxsize=64)  # requests of one millisecond share it
def _moment(time_ms: int) -> bytes:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z").encode()


def request_headers(
    request_id: str,
    tenant: str,
    time_ms: int,
    traceparent: str | None = None,
    info: bytes | None = None,
    start_seconds: float | None = None,
) -> Headers:
    """All headers of a request record that the API publishes; `info` is its encoded `RequestInfo`.

    `start_seconds` is its own start deadline, None the default one.
    """
    headers = (
        *cloud_event("inferlog.request.v1", request_id, "inferlog/api", time_ms),
        (REQUEST_ID, request_id.encode()),
        (TENANT, tenant.encode()),
    )
    if info is not None:
        headers = (*headers, (REQUEST_INFO, info))
    if start_seconds is not None:
        headers = (*headers, (START_SECONDS, repr(start_seconds).encode()))
    return (*headers, (TRACEPARENT, traceparent.encode())) if traceparent else headers


def header_text(headers: Headers, name: str, bytes_max: int = 1024) -> str | None:
    """The last header of that name as text; None if absent, too long or not UTF-8."""
    for key, value in reversed(headers):
        if key == name:
            if len(value) > bytes_max:
                return None
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None
