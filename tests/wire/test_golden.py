"""Frozen samples of every record, version 1: what stands on a log must stay readable, byte by byte."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from schemas import codec
from schemas.fences import Acquired, Fenced, Still
from schemas.operations import (
    Claim,
    Control,
    DeadLetter,
    LetterMark,
    ModelState,
    Start,
    Usage,
    WorkerState,
)
from schemas.replies import (
    Accepted,
    Cancelled,
    ErrorInfo,
    Events,
    Expired,
    Failed,
    Fence,
    Finished,
    Released,
    Started,
    TokenLogprob,
    Tokens,
    TokenUsage,
)
from schemas.requests import (
    CHAT,
    RESPONSES,
    Body,
    Deadlines,
    Message,
    Request,
    RequestInfo,
    ResponseEcho,
    ResponseFormat,
)

T = TypeVar("T")

GOLDEN = Path(__file__).resolve().parents[2] / "schemas" / "golden"
ID = "0192f0c4-8a00-7003-8000-000000000001"
Q = "requests.default.premium/2"
INFO = RequestInfo(endpoint=CHAT, model="smollm2", tier="premium", n=2, stream=True)

ECHO = ResponseEcho(
    instructions="Be brief.",
    metadata={"order": "1"},
    store=False,
    background=True,
    temperature=0.5,
    top_p=0.9,
    max_output_tokens=8,
    text_format={"type": "json_object"},
    user="ann",
)


def said(**fields: object) -> dict[str, object]:
    return {"id": ID, "tenant": "acme", "q": Q, "offset": 41, "epoch": 7, **fields}


def event(kind: Callable[..., T], **fields: object) -> T:
    return kind(**said(**fields))


SAMPLES: dict[str, tuple[msgspec.Struct, Callable[[bytes | None], msgspec.Struct]]] = {
    "request": (
        Request(
            id=ID,
            tenant="acme",
            tier="premium",
            model="smollm2",
            endpoint=CHAT,
            body=Body(
                messages=(
                    Message(role="system", content="Be brief."),
                    Message(role="user", content="Größe? 🌍", name="ann"),
                ),
                max_tokens=64,
                n=2,
                temperature=0.5,
                top_p=0.9,
                presence_penalty=0.25,
                frequency_penalty=-0.25,
                seed=11,
                stop=("END", "\n\n"),
                logprobs=2,
                logit_bias={"50": -1.5},
                response_format=ResponseFormat(
                    type="json_schema", schema={"type": "object", "required": ["a"]}
                ),
            ),
            pool="small",
            deadlines=Deadlines(start_seconds=5.0, first_token_seconds=6.0, total_seconds=60.0),
            stream=True,
            include_usage=True,
            reply_from=123,
            redrive_of="0192f0c4-8a00-7003-8000-000000000000",
        ),
        codec.decode_request,
    ),
    "request_response": (
        Request(
            id=ID,
            tenant="acme",
            tier="standard",
            model="smollm2",
            endpoint=RESPONSES,
            body=Body(messages=(Message(role="user", content="Hi"),), max_tokens=8),
            stream=True,
            response=ECHO,
        ),
        codec.decode_request,
    ),
    "accepted_response": (
        Accepted(
            id=ID,
            tenant="acme",
            info=RequestInfo(endpoint=RESPONSES, model="smollm2", tier="standard", response=ECHO),
        ),
        codec.decode_reply,
    ),
    "control_redeem": (
        Control(kind="redeem", tenant="acme", request_id=ID, ticket="ab12", use="cd34"),
        codec.decode_control,
    ),
    "accepted": (Accepted(id=ID, tenant="acme", info=INFO), codec.decode_reply),
    "fence": (Fence(epoch=7, qs=(Q, "requests.default.free/0")), codec.decode_reply),
    "events": (
        Events(
            events=(
                event(Started, starts=2, counts=(3, 0), info=INFO, worker="w1"),
                event(
                    Tokens,
                    seq=3,
                    token_ids=(50, 1061),
                    text="é ",
                    choice=1,
                    logprobs=(TokenLogprob(token="é", logprob=-0.5, top=(("e", -1.5),)),),
                    finish_reason="length",
                ),
                event(Released),
                event(
                    Finished,
                    counts=(3, 5),
                    usage=TokenUsage(prompt_tokens=12, completion_tokens=8, cached_tokens=4),
                    finish_reasons=("stop", "length"),
                ),
                event(
                    Failed,
                    counts=(1,),
                    error=ErrorInfo(code="engine_failed", message="It stopped.", param="n"),
                ),
                event(Cancelled, counts=(1, 1)),
                event(Expired, counts=(), deadline="first_token"),
            )
        ),
        codec.decode_reply,
    ),
    "acquired": (Acquired(qs=(Q,), incarnation="a1b2", ends=(4, 5)), codec.decode_fence),
    "fenced": (Fenced(epoch=7, ends=(6, 7)), codec.decode_fence),
    "still": (Still(epoch=7, qs=(Q,), incarnation="a1b2", ends=(6, 7)), codec.decode_fence),
    "claim": (
        Claim(
            tenant="acme",
            key="order-1",
            fingerprint="ab" * 32,
            request_id=ID,
            q=Q,
            life_seconds=3600.0,
        ),
        codec.decode_claim,
    ),
    "control": (
        Control(
            kind="cancel",
            tenant="acme",
            request_id=ID,
            worker_id="w1",
            model="smollm2",
            reason="disconnect",
        ),
        codec.decode_control,
    ),
    "usage": (
        Usage(
            request_id=ID,
            tenant="acme",
            model="smollm2",
            tier="premium",
            endpoint=CHAT,
            q=Q,
            offset=41,
            epoch=7,
            outcome="finished",
            prompt_tokens=12,
            cached_tokens=4,
            completion_tokens=8,
            queue_seconds=0.25,
            run_seconds=1.5,
            engine_seconds=1.25,
            key_prefix="sk-ab",
        ),
        codec.decode_usage,
    ),
    "worker_state": (
        WorkerState(
            worker_id="w1",
            incarnation="a1b2",
            pool="default",
            models=(ModelState(name="smollm2", context_tokens=2048, state="ready"),),
            slots=8,
            running=3,
            waiting=2,
            tokens_per_second=120.5,
            qs=(Q,),
            member_ids=("m-1",),
            version="0.1.0",
            time_ms=1_700_000_000_000,
        ),
        codec.decode_worker,
    ),
    "dead_letter": (
        DeadLetter(
            topic="requests.default.premium",
            partition=2,
            offset=41,
            time_ms=1_700_000_000_000,
            reason="undecodable",
            detail="not JSON",
            key=b"\x00k",
            value=b"\xff{",
            headers=(("traceparent", b"00-1"),),
            request_id=ID,
            tenant="acme",
            starts=(Start(epoch=5, starts=1, worker="w0"),),
        ),
        codec.decode_letter,
    ),
    "letter_mark": (
        LetterMark(partition=0, offset=17, action="redriven", request_id=ID, new_id=ID),
        codec.decode_letter,
    ),
}


def frozen(name: str) -> bytes:
    return (GOLDEN / f"{name}.v1.json").read_bytes().removesuffix(b"\n")


@pytest.mark.parametrize("name", SAMPLES)
def test_frozen_bytes_are_read_as_what_was_written(name: str) -> None:
    record, decode = SAMPLES[name]
    assert decode(frozen(name)) == record


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_written_is_the_frozen_bytes(name: str) -> None:
    record, _ = SAMPLES[name]
    assert codec.encode(record) == frozen(name)


def test_every_frozen_sample_has_its_test() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.v1.json" for name in SAMPLES}


@pytest.mark.parametrize("name", SAMPLES)
def test_another_version_and_an_unknown_field_are_refused(name: str) -> None:
    _, decode = SAMPLES[name]
    for extra in (b'"v":2', b'"surprise":1'):
        changed = frozen(name)[:-1] + b"," + extra + b"}"
        with pytest.raises(codec.UndecodableRecord):
            decode(changed)
