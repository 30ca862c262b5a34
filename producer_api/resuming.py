"""Going on with a stream from any event of it, on any replica."""

from collections.abc import Callable

from fastapi import Request as HttpRequest
from starlette.responses import Response

from core.errors import Refusal
from core.stream import Visible
from producer_api.answers import Answering
from producer_api.context import ApiContext
from producer_api.rendering import renderer_of
from producer_api.response_rendering import last_number
from producer_api.submission import Snapshot
from schemas.replies import Finished, Tokens
from schemas.requests import RESPONSES


def last_event(snapshot: Snapshot) -> int:
    """The id of the last event there is: a sequence number of a response, else a position."""
    if snapshot.info.endpoint == RESPONSES:
        return last_number(snapshot.visible)
    return sum(len(it.token_ids) for it in snapshot.visible if isinstance(it, Tokens))


def _is_read(last: Visible, snapshot: Snapshot) -> bool:
    """Whether nothing more can follow the last event's id: for a response its failure has one too."""
    ended = snapshot.state not in ("queued", "in_progress")
    return isinstance(last, Finished) or (ended and snapshot.info.endpoint == RESPONSES)


def check_retrievable(snapshot: Snapshot) -> None:
    """Raises Refusal `not_found` for a response that was made with `store` false."""
    echo = snapshot.info.response
    if echo is not None and not echo.store:
        raise Refusal("not_found", "There is no such request: it was made with 'store': false.")


def _check_cursor(after: int | None, there: int) -> None:
    if after and after > there:
        raise Refusal(
            "stream_cursor_expired",
            f"Event {after} lies beyond what there is of this answer ({there}).",
        )


async def resume(
    http: HttpRequest,
    context: ApiContext,
    request_id: str,
    after: int | None,
    check: Callable[[Snapshot], None] = check_retrievable,
) -> Response:
    """The stream from behind the event `after` on, the whole of it without one.

    204 for an answer that is finished and read to its end, so that an `EventSource` stops. Raises
    Refusal `not_found`, `stream_cursor_expired` where the log holds no such event (any more).
    """
    tenant: str = http.scope["tenant"]
    try:
        snapshot, stream = await context.pipeline.resume(tenant, request_id)
    except Refusal as refusal:
        if after and refusal.code == "result_expired":
            raise Refusal("stream_cursor_expired", refusal.message) from None
        raise
    headers = {"X-Request-Id": request_id}
    there = last_event(snapshot)
    try:
        check(snapshot)
        _check_cursor(after, there)
    except Refusal:
        await stream.close()
        raise
    if after is not None and after == there and _is_read(snapshot.visible[-1], snapshot):
        await stream.close()
        return Response(status_code=204, headers=headers)
    total_s = snapshot.info.total_seconds
    answering = Answering(http, stream, context.limits, total_s, lambda: None)
    renderer = renderer_of(request_id, snapshot.info, after)
    is_response = snapshot.info.endpoint == RESPONSES
    return await answering.streamed(
        renderer, headers, status_until=None if is_response else after or 0
    )
