"""The only place that knows bytes: one typed JSON wire, bounded, with one error.

Decoders and encoders are made once and reused; they hold no state between calls.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from schemas.fences import FenceRecord
from schemas.operations import Claim, Control, DeadLetter, LetterMark, Usage, WorkerState
from schemas.replies import ReplyRecord
from schemas.requests import Request, RequestInfo

RECORD_BYTES_MAX = 2 * 1024 * 1024


class UndecodableRecord(ValueError):
    """The bytes are not a record of the expected kind. The text says where and why, never what."""


class _Tagged(msgspec.Struct):
    record: str


_encoder = msgspec.json.Encoder()
_decode_tag = msgspec.json.Decoder(_Tagged).decode


def encode(record: msgspec.Struct) -> bytes:
    """Encodes any record of `schemas`."""
    return _encoder.encode(record)


def _decoder(kind: Any) -> Callable[[bytes | None], Any]:
    decode_json = msgspec.json.Decoder(kind).decode

    def decode(data: bytes | None) -> Any:
        if data is None:
            raise UndecodableRecord("the record has no value")
        if len(data) > RECORD_BYTES_MAX:
            raise UndecodableRecord(f"the record has {len(data)} bytes, at most {RECORD_BYTES_MAX}")
        try:
            return decode_json(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableRecord(f"{type(error).__name__}: {error}"[:300]) from None

    return decode


decode_request: Callable[[bytes | None], Request] = _decoder(Request)
decode_info: Callable[[bytes | None], RequestInfo] = _decoder(RequestInfo)
decode_reply: Callable[[bytes | None], ReplyRecord] = _decoder(ReplyRecord)
decode_fence: Callable[[bytes | None], FenceRecord] = _decoder(FenceRecord)
decode_claim: Callable[[bytes | None], Claim] = _decoder(Claim)
decode_control: Callable[[bytes | None], Control] = _decoder(Control)
decode_usage: Callable[[bytes | None], Usage] = _decoder(Usage)
decode_worker: Callable[[bytes | None], WorkerState] = _decoder(WorkerState)
decode_dead_letter: Callable[[bytes | None], DeadLetter] = _decoder(DeadLetter)
_decode_mark: Callable[[bytes | None], LetterMark] = _decoder(LetterMark)


def is_foreign(data: bytes | None) -> bool:
    """True for bytes that are no record of `replies` of any version, so nobody's event can be lost.

    All of ours are JSON objects that say in `record` what they are. One that does and cannot be decoded
    may come from a writer that is newer than its reader.
    """
    try:
        _decode_tag(data or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    return False


def decode_letter(data: bytes | None) -> DeadLetter | LetterMark:
    """Any record of `dead-letters`. A letter has no tag: it was there before the marks."""
    try:
        return decode_dead_letter(data)
    except UndecodableRecord as no_letter:
        try:
            return _decode_mark(data)
        except UndecodableRecord:
            raise no_letter from None
