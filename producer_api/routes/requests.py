"""`/v1/requests`: accept now, ask later, follow from anywhere, cancel."""

from typing import Any

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from core.errors import Refusal
from core.stream import Visible, is_terminal
from producer_api.answers import Answering, status_object
from producer_api.context import context_of, read_background
from producer_api.error_responses import JSON, error_object, refusal_of
from producer_api.rendering import whole_body
from producer_api.routes.openai import position_of, request_id_of
from producer_api.submission import Snapshot
from schemas.replies import Tokens

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
    incoming = await read_background(http, context)
    submission = await context.pipeline.submit(
        incoming.draft, idempotency=incoming.idempotency, traceparent=incoming.traceparent
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
    bare = request_id_of(context, request_id)
    snapshot = await context.pipeline.status(http.scope["tenant"], bare)
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
    """The answer as server-sent events, from the start or from a position on."""
    context = context_of(http)
    bare = request_id_of(context, request_id)
    tenant = http.scope["tenant"]
    after = position_of(
        http.headers.get("last-event-id") or http.query_params.get("starting_after")
    )
    snapshot = await context.pipeline.status(tenant, bare)
    headers = {"X-Request-Id": bare}
    read = sum(len(it.token_ids) for it in snapshot.visible if isinstance(it, Tokens))
    if after and after >= read and _finished(snapshot.visible):
        return Response(status_code=204, headers=headers)  # EventSource stops reconnecting
    if after > read:
        raise Refusal(
            "stream_cursor_expired",
            f"Position {after} lies beyond what there is of this answer ({read}).",
        )
    replies = await context.pipeline.open(tenant, bare, after=after)
    total_s = snapshot.info.total_seconds
    answering = Answering(http, replies, context.limits, total_s, lambda: None)
    return await answering.streamed(snapshot.info, headers, after=after)


def _finished(visible: list[Visible]) -> bool:
    return bool(visible) and is_terminal(visible[-1])


@router.post("/v1/requests/{request_id}/cancel")
async def cancel(request_id: str, http: HttpRequest) -> dict[str, Any]:
    """Asks for an end; `cancelled` is said only once it is on the log. Idempotent."""
    context = context_of(http)
    bare = request_id_of(context, request_id)
    tenant = http.scope["tenant"]
    snapshot = await context.pipeline.status(tenant, bare)
    if not _finished(snapshot.visible):
        context.metrics.cancels.labels("client").inc()
        await context.pipeline.cancel(tenant, bare, "client")
        replies = await context.pipeline.open(tenant, bare)
        try:
            for _ in range(10):
                if _finished(await replies.next(0.5)):
                    break
        finally:
            await replies.close()
        snapshot = await context.pipeline.status(tenant, bare)
    return _status(bare, snapshot)
