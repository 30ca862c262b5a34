"""`inferlog send`: one question, its answer as it comes."""

import asyncio
import json
import sys
import time
from typing import Any

import httpx

from inferlog.api_client import CHAT, Refused, StreamCut, choose_model, open_stream, resolve
from inferlog.client_settings import SendCommand
from inferlog.problems import CommandFailed, WrongUsage
from runtime.service import EXIT_OK

PROMPT_BYTES_MAX = 4 * 1024 * 1024


def run(command: SendCommand) -> int:
    """Streams the answer to standard output, facts about it to standard error."""
    prompt = command.prompt
    if prompt == "-":
        read = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
        if len(read) > PROMPT_BYTES_MAX:
            raise WrongUsage(f"more than {PROMPT_BYTES_MAX // 2**20} MB to say")
        prompt = read.decode(errors="surrogateescape")
    for text in (prompt, command.system or ""):
        # what is no UTF-8 arrives as lone surrogates
        if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            raise WrongUsage("what is to be said is no UTF-8 text")
    if not prompt.strip():
        raise WrongUsage("an empty prompt")
    return asyncio.run(_send(command, prompt))


def request_body(command: SendCommand, prompt: str, model: str) -> dict[str, Any]:
    """The chat request that the flags describe."""
    messages = [{"role": "system", "content": command.system}] if command.system else []
    messages.append({"role": "user", "content": prompt})
    optional = {
        "max_tokens": command.max_tokens,
        "temperature": command.temperature,
        "seed": command.seed,
    }
    return {
        "model": model,
        "messages": messages,
        "service_tier": command.service_tier,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


async def _send(command: SendCommand, prompt: str) -> int:
    target = resolve(command.client)
    headers = {"Idempotency-Key": command.idempotency_key} if command.idempotency_key else {}
    async with target.client() as client:
        model = await choose_model(client, command.client.model)
        answer = await stream_answer(
            client, request_body(command, prompt, model), headers, show=not command.json
        )
    if command.json:
        print(json.dumps({"model": model, **answer}))
    else:
        tokens = (answer["usage"] or {}).get("completion_tokens", 0)
        replayed = ", recorded before (Idempotent-Replayed: true)" if answer["replayed"] else ""
        print(
            f"[{tokens} tokens, first after {answer['ttft_seconds']:.2f} s, "
            f"{answer['seconds']:.2f} s in all{replayed}; inferlog log {answer['request_id']}]",
            file=sys.stderr,
        )
    return EXIT_OK


async def stream_answer(
    client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], *, show: bool
) -> dict[str, Any]:
    """Sends a chat request and, with `show`, prints each piece as it comes.

    Returns request_id, text, finish_reason, usage, replayed, ttft_seconds, seconds. Raises
    CommandFailed.
    """
    began_s = time.monotonic()
    streamed = await open_stream(client, CHAT, body, headers)
    text: list[str] = []
    usage, reason, first_s = None, None, None
    try:
        async for chunk in streamed.chunks():
            if chunk.text:
                first_s = chunk.at_s if first_s is None else first_s
                text.append(chunk.text)
                if show:
                    print(chunk.text, end="", flush=True)
            reason = chunk.finish_reason or reason
            usage = chunk.usage or usage
    except (Refused, StreamCut) as error:
        if show and text:
            print()
        raise CommandFailed(f"{error}; request {streamed.request_id}") from None
    finally:
        await streamed.response.aclose()
        if show and text:
            print(flush=True)
    ended_s = time.monotonic()
    return {
        "request_id": streamed.request_id,
        "text": "".join(text),
        "finish_reason": reason,
        "usage": usage,
        "replayed": streamed.replayed,
        "ttft_seconds": round((first_s or ended_s) - began_s, 4),
        "seconds": round(ended_s - began_s, 4),
    }
