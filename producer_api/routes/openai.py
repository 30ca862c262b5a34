"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`: what OpenAI's clients call."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from core.errors import Refusal
from producer_api.answers import Answering
from producer_api.context import ApiContext, Incoming, context_of, read_draft
from producer_api.rendering import renderer_of
from producer_api.response_rendering import response_object, response_of
from producer_api.submission import Submission
from schemas.requests import CHAT, COMPLETIONS, Endpoint

router = APIRouter()

BODY = {
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


@router.post("/v1/chat/completions", openapi_extra=BODY)
async def chat_completions(http: HttpRequest) -> Response:
    """Runs a chat completion, streamed or not."""
    return await complete(http, CHAT)


@router.post("/v1/completions", openapi_extra=BODY)
async def completions(http: HttpRequest) -> Response:
    """Runs a completion, streamed or not."""
    return await complete(http, COMPLETIONS)


async def complete(http: HttpRequest, endpoint: Endpoint) -> Response:
    """Submits, then answers in the form that was asked for."""
    context = context_of(http)
    incoming = read_draft(http, endpoint, context)
    submission = await context.pipeline.submit(
        incoming.draft, idempotency=incoming.idempotency, traceparent=incoming.traceparent
    )
    request_id = submission.request_id
    headers = {"X-Request-Id": request_id}
    if submission.outcome == "replayed":
        headers["Idempotent-Replayed"] = "true"
    background = incoming.in_background
    plain = incoming.idempotency is None and not incoming.resumable and not background
    if background and not incoming.draft.stream:
        return await answer_at_once(context, incoming, submission, headers)

    def on_gone() -> None:
        if plain:
            context.metrics.cancels.labels("disconnect").inc()
            context.pipeline.cancel_soon(incoming.draft.tenant, request_id)

    total_s = incoming.draft.deadlines.total_seconds
    answering = Answering(http, submission.stream, context.limits, total_s, on_gone)
    if incoming.draft.stream:
        renderer = renderer_of(request_id, incoming.info)
        status_until = None if background else 0
        return await answering.streamed(renderer, headers, status_until=status_until)
    return await answering.whole(headers)


async def answer_at_once(
    context: ApiContext, incoming: Incoming, submission: Submission, headers: dict[str, str]
) -> Response:
    """A background response: queued, unless its key was used before."""
    request_id = submission.request_id
    await submission.stream.close()
    if submission.outcome == "new":
        body = response_object(request_id, incoming.info, "queued")
    else:
        snapshot = await context.pipeline.status(incoming.draft.tenant, request_id)
        body = response_of(request_id, snapshot)
    return JSONResponse(body, headers=headers)


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
