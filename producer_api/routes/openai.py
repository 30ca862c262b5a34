"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`: what OpenAI's clients call."""

import math
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from core.errors import Refusal
from producer_api.answers import Answering
from producer_api.context import ApiContext, context_of, read_draft
from schemas.ids import bare_request_id
from schemas.requests import CHAT, COMPLETIONS, Endpoint

router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "description": "OpenAI's body; docs/parameters.md lists every parameter.",
                }
            }
        },
    }
}


@router.post("/v1/chat/completions", openapi_extra=_BODY)
async def chat_completions(http: HttpRequest) -> Response:
    """Runs a chat completion, streamed or not."""
    return await complete(http, CHAT)


@router.post("/v1/completions", openapi_extra=_BODY)
async def completions(http: HttpRequest) -> Response:
    """Runs a completion, streamed or not."""
    return await complete(http, COMPLETIONS)


async def complete(http: HttpRequest, endpoint: Endpoint) -> Response:
    """Submits, then answers in the form that was asked for."""
    context = context_of(http)
    incoming = await read_draft(http, endpoint, context)
    submission = await context.pipeline.submit(
        incoming.draft, idempotency=incoming.idempotency, traceparent=incoming.traceparent
    )
    request_id = submission.request_id
    headers = {"X-Request-Id": request_id}
    if submission.outcome == "replayed":
        headers["Idempotent-Replayed"] = "true"
    plain = incoming.idempotency is None and not incoming.resumable

    def on_gone() -> None:
        if plain:
            context.metrics.cancels.labels("disconnect").inc()
            context.pipeline.cancel_soon(incoming.draft.tenant, request_id)

    total_s = incoming.draft.deadlines.total_seconds
    answering = Answering(http, submission.stream, context.limits, total_s, on_gone)
    if incoming.draft.stream:
        return await answering.streamed(incoming.info, headers)
    return await answering.whole(headers)


@router.get("/v1/models")
async def models(http: HttpRequest) -> dict[str, Any]:
    """Every model that a worker has announced."""
    return {"object": "list", "data": [_model(it) for it in context_of(http).pipeline.models()]}


@router.get("/v1/models/{name:path}")
async def model(name: str, http: HttpRequest) -> dict[str, Any]:
    """One model."""
    for it in context_of(http).pipeline.models():
        if it.name == name:
            return _model(it)
    raise Refusal("model_not_found", "No worker has ever announced this model.", param="model")


def _model(entry: Any) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": int(entry.since_ms // 1000),
        "owned_by": "inferlog",
        "context_length": entry.context_tokens,
        "state": entry.state,
    }


def request_id_of(context: ApiContext, text: str) -> str:
    """The bare id of any form. Raises Refusal `not_found`."""
    del context
    try:
        return bare_request_id(text)
    except ValueError:
        raise Refusal("not_found", "There is no such request.") from None


def position_of(text: str | None) -> int:
    """`Last-Event-ID` or `starting_after` as a position. Raises Refusal."""
    if text is None or not text:
        return 0
    if not text.isdecimal() or len(text) > 9 or not math.isfinite(int(text)):
        raise Refusal(
            "invalid_request",
            "'Last-Event-ID' and 'starting_after' are the id of an event of this stream.",
            param="starting_after",
        )
    return int(text)
