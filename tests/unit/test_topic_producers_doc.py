"""What the page for topic producers says of formats is what the code reads and writes."""

import re
from pathlib import Path

import msgspec

from schemas.codec import decode_request
from schemas.ids import parse_request_id
from schemas.operations import DeadLetter
from schemas.requests import Body, Request

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "topic-producers.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_the_sample_record_is_one() -> None:
    sample = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert sample is not None
    request = decode_request(sample[1].encode())
    assert parse_request_id(request.id).reply_partition == 2
    assert "`7002` says: version 7, reply partition 2" in PAGE


def test_every_field_of_a_request_and_of_its_body_is_named() -> None:
    said = names(section("The request record"))
    for kind in (Request, Body):
        assert {field.name for field in msgspec.structs.fields(kind)} - said == set()


def test_every_field_of_a_dead_letter_and_every_reason_is_named() -> None:
    said = names(section("Dead letters"))
    # `starts` stays empty, and `v` is left out, in what workers write
    fields = {field.name for field in msgspec.structs.fields(DeadLetter)} - {"starts", "v"}
    assert fields - said == set()
    intake = (ROOT / "consumers" / "inference" / "intake.py").read_text()
    reasons = set(re.findall(r'Parked\(\s*"(\w+)"', intake))
    assert len(reasons) >= 4
    assert reasons - said == set()
