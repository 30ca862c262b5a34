"""`/v1/requests`: accept now, ask later, follow from anywhere, cancel."""

import time
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from core.stream import is_terminal
from producer_api.answers import status_object
from producer_api.context import ApiContext, context_of, read_background
from producer_api.error_responses import JSON, error_object, refusal_of
from producer_api.rendering import whole_body
from producer_api.resuming import check_retrievable, resume
from producer_api.routes.ids import cursor_of, request_id_of
from producer_api.streams import ShuttingDown
from producer_api.submission import Snapshot
from topics.ports import LogError

CANCEL_SECONDS = 5.0
"""How long a cancel waits for the end to come, before it tells that the request still runs."""

router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["endpoint", "body"],
                    "properties": {"endpoint": {"type": "string"}, "body": {"type": "object"}},
                }
            }
        },
    }
}


@router.post("/v1/requests", status_code=202, openapi_extra=_BODY)
async def create(http: HttpRequest) -> Response:
    """Accepts a request durably and returns its id at once."""
    context = context_of(http)
    incoming = read_background(http, context)
    submission = await context.pipeline.submit(
        incoming.draft,
        idempotency=incoming.idempotency,
        traceparent=incoming.traceparent,
        followed=False,
    )
    await submission.stream.close()
    request_id = submission.request_id
    headers = {"X-Request-Id": request_id, "Location": f"/v1/requests/{request_id}"}
    if submission.outcome == "replayed":
        headers["Idempotent-Replayed"] = "true"
    told = status_object(request_id, "queued", incoming.info)
    if submission.outcome != "new":  # the request that holds the key may run, or have ended
        told = _status(request_id, await context.pipeline.status(http.scope["tenant"], request_id))
    return Response(orjson.dumps(told), status_code=202, headers=headers, media_type=JSON)


@router.get("/v1/requests/{request_id}")
async def status(request_id: str, http: HttpRequest) -> dict[str, Any]:
    """What the log says of a request now; the endpoint's own body once it is complete."""
    context = context_of(http)
    bare = request_id_of(request_id)
    snapshot = await context.pipeline.status(http.scope["tenant"], bare)
    check_retrievable(snapshot)
    return _status(bare, snapshot)


def _status(request_id: str, snapshot: Snapshot) -> dict[str, Any]:
    found = status_object(request_id, snapshot.state, snapshot.info)
    if snapshot.state == "completed":
        found["response"] = whole_body(request_id, snapshot.visible)
        return found
    last = snapshot.visible[-1]
    if is_terminal(last):
        refusal = refusal_of(last)  # type: ignore[arg-type]  # just checked
        if refusal is not None:
            found.update(error_object(refusal))
    return found


@router.get("/v1/requests/{request_id}/stream")
async def stream(request_id: str, http: HttpRequest) -> Response:
    """The answer as server-sent events, from the start or from behind an event on."""
    cursor = cursor_of(http.headers.get("last-event-id"), http.query_params.get("starting_after"))
    return await resume(http, context_of(http), request_id_of(request_id), cursor)


@router.post("/v1/requests/{request_id}/ticket", status_code=201)
async def ticket(request_id: str, http: HttpRequest) -> Response:
    """A ticket that lets a browser's `EventSource` in to this one stream, once, without a key."""
    context = context_of(http)
    bare = request_id_of(request_id)
    tenant = http.scope["tenant"]
    check_retrievable(await context.pipeline.status(tenant, bare))
    text = context.tickets.issue(tenant, bare, context.pipeline.now_ms())
    context.metrics.tickets.labels("issued").inc()
    body = orjson.dumps({"ticket": text, "expires_in": int(context.limits.ticket_seconds)})
    headers = {"Cache-Control": "no-store"}
    return Response(body, status_code=201, headers=headers, media_type=JSON)


@router.post("/v1/requests/{request_id}/cancel")
async def cancel(request_id: str, http: HttpRequest) -> dict[str, Any]:
    """Asks for an end; `cancelled` is said only once it is on the log. Idempotent."""
    context = context_of(http)
    bare = request_id_of(request_id)
    return _status(bare, await cancelled(context, http.scope["tenant"], bare))


async def cancelled(
    context: ApiContext,
    tenant: str,
    request_id: str,
    check: Callable[[Snapshot], None] = check_retrievable,
) -> Snapshot:
    """Cancels, waits a moment for the end to come, and tells what the log says then."""
    snapshot, replies = await context.pipeline.resume(tenant, request_id)
    try:
        check(snapshot)
        if is_terminal(snapshot.visible[-1]):
            return snapshot
        context.metrics.cancels.labels("client").inc()
        await context.pipeline.cancel(tenant, request_id, "client")
        until_s = time.monotonic() + CANCEL_SECONDS
        while not replies.ended and time.monotonic() < until_s:
            await replies.next(0.5)
    except (ShuttingDown, LogError):
        pass  # it is on the log all the same; whether this replica can still tell, the status says
    finally:
        await replies.close()
    return await context.pipeline.status(tenant, request_id)
