"""The least that serves the scripted engine over HTTP: FastAPI and uvicorn, no log, one process.

It is the floor that a pipeline or a gateway adds its costs to, and the upstream of the gateways that
are compared with. `python -m benchmarks.plain_service PORT [--engine-option KEY=VALUE]...`
"""

import argparse
import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import orjson
import uvicorn
import uvloop
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from consumers.inference.engine.options import make_engine
from consumers.inference.engine.ports import Engine, EngineDied, Output, Report, Run, RunEnded
from runtime.garbage import look_now_and_then
from schemas.replies import ErrorInfo
from schemas.requests import CHAT, Body, Message

MODEL = "scripted"
DONE = b"data: [DONE]\n\n"


class StreamOptions(msgspec.Struct):
    """OpenAI's."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """What the scripted engine heeds of a chat; the rest is passed over."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def body(self) -> Body:
        """As the engine takes it."""
        newer, older = self.max_completion_tokens, self.max_tokens
        return Body(messages=self.messages, max_tokens=older if newer is None else newer)


class Answer:
    """One run: what the engine reports of it, and OpenAI's words for it."""

    def __init__(self, number: int, wanted: ChatRequest) -> None:
        self.reports: asyncio.Queue[Report] = asyncio.Queue()  # at most one report per token
        self._wanted = wanted
        self._tokens = 0
        self._head = {
            "id": f"chatcmpl-{number}",
            "created": int(time.time()),
            "model": wanted.model,
        }

    async def whole(self) -> Response:
        """The answer in one piece."""
        text, reason = "", None
        while isinstance(report := await self.reports.get(), Output):
            text += report.text
            reason = report.finish_reason or reason
            self._tokens += len(report.token_ids)
        if report.error is not None:
            return _json(_error(report.error), 400)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return _json(self._object("chat.completion", [choice], self._usage(report)))

    async def streamed(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; what came together is written together."""
        head = self._chunk({"role": "assistant", "content": ""}, None)
        while isinstance(report := await self.reports.get(), Output):
            self._tokens += len(report.token_ids)
            pieces = head + self._chunk({"content": report.text}, None)
            if report.finish_reason is not None:
                pieces += self._chunk({}, report.finish_reason)
            yield pieces
            head = b""
        if report.error is not None:
            yield _frame(_error(report.error))
            return
        options = self._wanted.stream_options
        if options is not None and options.include_usage:
            yield _frame(self._object("chat.completion.chunk", [], self._usage(report))) + DONE
        else:
            yield DONE

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _frame(self._object("chat.completion.chunk", [choice], {}))

    def _object(self, kind: str, choices: list[Any], more: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **more}

    def _usage(self, end: RunEnded) -> dict[str, Any]:
        usage = {
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": end.prompt_tokens + self._tokens,
        }
        return {"usage": usage}


class PlainService:
    """The engine and the answers under way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)
        self._answers: dict[int, Answer] = {}

    async def start(self) -> None:
        """The engine runs afterwards."""
        await self._engine.start(self._on_reports, self._on_death)

    async def stop(self) -> None:
        """Ends the engine."""
        await self._engine.stop()

    @asynccontextmanager
    async def answer(self, wanted: ChatRequest) -> AsyncIterator[Answer]:
        """Runs until it is left; a client that went away frees its slot."""
        number = next(self._numbers)
        answer = self._answers[number] = Answer(number, wanted)
        try:
            run = Run(number, f"plain-{number}", wanted.model, CHAT, wanted.body())
            self._engine.submit(run)
            yield answer
        finally:
            del self._answers[number]
            self._engine.abort(number)

    def _on_reports(self, reports: Sequence[Report]) -> None:
        for report in reports:
            answer = self._answers.get(report.run_id)
            if answer is not None:
                answer.reports.put_nowait(report)

    def _on_death(self, death: EngineDied) -> None:
        error = ErrorInfo(code="engine_failed", message=str(death))
        for number, answer in self._answers.items():
            answer.reports.put_nowait(RunEnded(number, 0, 0, error))


def make_app(service: PlainService) -> FastAPI:
    """The routes. The service is started by the caller."""
    app = FastAPI(title="Scripted engine, plainly")

    @app.post("/v1/chat/completions")
    async def chat(request: HttpRequest) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=ChatRequest)
        except msgspec.DecodeError as error:
            return _json(_error(ErrorInfo(code="invalid_request", message=str(error))), 400)
        if wanted.stream:
            return StreamingResponse(_stream(service, wanted), media_type="text/event-stream")
        async with service.answer(wanted) as answer:
            return await answer.whole()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "inferlog"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[Literal["status"], str]:
        return {"status": "ok"}

    return app


async def _stream(service: PlainService, wanted: ChatRequest) -> AsyncIterator[bytes]:
    async with service.answer(wanted) as answer:
        async for piece in answer.streamed():
            yield piece


def _json(payload: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(payload), status, media_type="application/json")


def _frame(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _error(error: ErrorInfo) -> dict[str, Any]:
    told = {"message": error.message, "type": "invalid_request_error", "code": error.code}
    return {"error": {**told, "param": error.param}}


async def serve(port: int, options: Sequence[str]) -> None:
    """Until it is told to end."""
    service = PlainService(make_engine("scripted", MODEL, options))
    await service.start()
    config = uvicorn.Config(
        make_app(service),
        host="127.0.0.1",
        port=port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    # as the API and the worker do: a floor must not cost more where it does less
    looking = asyncio.create_task(look_now_and_then())
    await uvicorn.Server(config).serve()
    looking.cancel()
    await service.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--engine-option", action="append", default=[], metavar="KEY=VALUE")
    words = parser.parse_args()
    uvloop.run(serve(words.port, words.engine_option))
