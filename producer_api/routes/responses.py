"""`/v1/responses`: made, fetched, followed from any event, cancelled, deleted, on any replica."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from core.errors import Refusal
from producer_api.context import context_of
from producer_api.response_rendering import response_of
from producer_api.resuming import check_retrievable, resume
from producer_api.routes.ids import cursor_of, request_id_of
from producer_api.routes.openai import BODY, complete
from producer_api.routes.requests import cancelled
from producer_api.submission import Snapshot
from schemas.requests import RESPONSES

router = APIRouter()


@router.post("/v1/responses", openapi_extra=BODY)
async def create(http: HttpRequest) -> Response:
    """Runs a response: whole, streamed, or in the background."""
    return await complete(http, RESPONSES)


@router.get("/v1/responses/{response_id}")
async def retrieve(response_id: str, http: HttpRequest) -> Response:
    """The response as it is now; with `stream=true` its events, from behind `starting_after` on."""
    context = context_of(http)
    bare = request_id_of(response_id)
    query = http.query_params
    if query.get("stream", "false").lower() in ("true", "1"):
        cursor = cursor_of(http.headers.get("last-event-id"), query.get("starting_after"))
        return await resume(http, context, bare, cursor, check_streamed)
    snapshot = await context.pipeline.status(http.scope["tenant"], bare)
    check_response(snapshot)
    return JSONResponse(response_of(bare, snapshot), headers={"X-Request-Id": bare})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(response_id: str, http: HttpRequest) -> dict[str, Any]:
    """Asks for an end; `cancelled` is said only once it is on the log. Idempotent."""
    context = context_of(http)
    bare = request_id_of(response_id)
    return response_of(bare, await cancelled(context, http.scope["tenant"], bare, check_response))


@router.delete("/v1/responses/{response_id}")
async def delete(response_id: str, http: HttpRequest) -> dict[str, Any]:
    """Gone on every replica; one that still runs is aborted."""
    context = context_of(http)
    bare = request_id_of(response_id)
    tenant = http.scope["tenant"]
    check_response(await context.pipeline.status(tenant, bare))
    await context.pipeline.delete(tenant, bare)
    return {"id": f"resp_{bare}", "object": "response.deleted", "deleted": True}


def check_response(snapshot: Snapshot) -> None:
    """Raises Refusal `not_found` also for a chat, a completion, and what was not to be stored."""
    check_retrievable(snapshot)
    if snapshot.info.endpoint != RESPONSES:
        raise Refusal("not_found", "There is no such response.")


def check_streamed(snapshot: Snapshot) -> None:
    """Raises Refusal for a response that was not made to be streamed."""
    check_response(snapshot)
    if not snapshot.info.stream:
        raise Refusal(
            "invalid_request",
            "This response was not created with 'stream': true, so it cannot be streamed.",
            param="stream",
        )
