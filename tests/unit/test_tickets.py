"""A browser's way in without a key: one stream, once, for a minute."""

import base64
from typing import Any

import pytest

from core.limits import DEFAULT_LIMITS
from producer_api.auth import ApiKeys
from producer_api.tickets import Tickets
from tests.fake_pipeline import KEY, OTHER_KEY, REQUEST_ID, FakePipeline, client, finished, tokens

NOW_MS = 1_000_000.0
OTHER_ID = REQUEST_ID[:-1] + "2"
STREAM = f"/v1/requests/{REQUEST_ID}/stream"


def tickets(*keys: tuple[str, str]) -> Tickets:
    return Tickets(ApiKeys(dict(keys or ((KEY, "a"),))).common_secret, DEFAULT_LIMITS)


def answered() -> FakePipeline:
    return FakePipeline(batches=[[tokens(2, text="ab", end=True), finished(2)]])


def test_any_replica_with_the_same_keys_reads_it_for_a_minute() -> None:
    keys = ((KEY, "a"), (OTHER_KEY, "b"))
    ticket = tickets(*keys).issue("a", REQUEST_ID, NOW_MS)
    there = tickets(*reversed(keys))
    said = there.read(ticket, REQUEST_ID, NOW_MS + 59_999)
    assert said is not None
    assert (said.tenant, said.request_id) == ("a", REQUEST_ID)
    assert there.read(ticket, REQUEST_ID, NOW_MS + 60_000) is None
    assert there.read(ticket, OTHER_ID, NOW_MS) is None
    assert tickets((KEY, "b")).read(ticket, REQUEST_ID, NOW_MS) is None


def test_no_two_are_the_same() -> None:
    assert len({tickets().issue("a", REQUEST_ID, NOW_MS) for _ in range(10)}) == 10


def test_a_ticket_with_any_character_changed_is_none() -> None:
    ours = tickets()
    ticket = ours.issue("a", REQUEST_ID, NOW_MS)
    for place, old in enumerate(ticket):
        changed = ticket[:place] + ("A" if old != "A" else "B") + ticket[place + 1 :]
        said = ours.read(changed, REQUEST_ID, NOW_MS)
        # the last character of a part may carry bits that mean nothing
        assert said is None or _bytes(changed) == _bytes(ticket)
    for nonsense in ("", ".", "a.b", "ö.ö", "x" * 5000, ticket + ticket, ticket.split(".")[0]):
        assert ours.read(nonsense, REQUEST_ID, NOW_MS) is None


def _bytes(ticket: str) -> list[bytes]:
    return [base64.urlsafe_b64decode(part + "==") for part in ticket.split(".")]


async def issued(http: Any) -> str:
    answer = await http.post(f"/v1/requests/{REQUEST_ID}/ticket")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["expires_in"] == 60
    text: str = answer.json()["ticket"]
    return text


async def test_a_ticket_opens_its_stream_once_and_nothing_else() -> None:
    async with client(answered()) as http:
        ticket = await issued(http)
        del http.headers["Authorization"]
        elsewhere = [
            ("GET", f"/v1/requests/{REQUEST_ID}"),
            ("GET", f"/v1/requests/{OTHER_ID}/stream"),
            ("POST", STREAM),
            ("POST", f"/v1/requests/{REQUEST_ID}/cancel"),
            ("POST", f"/v1/requests/{REQUEST_ID}/ticket"),
            ("GET", f"/v1/responses/{REQUEST_ID}"),
            ("GET", "/v1/models"),
            ("GET", f"{STREAM}/"),
        ]
        for method, path in elsewhere:
            refused = await http.request(method, path, params={"ticket": ticket})
            assert refused.status_code == 401, path
        path = f"/v1/requests/chatcmpl-{REQUEST_ID}/stream"
        first = await http.get(path, params={"ticket": ticket})
        again = await http.get(STREAM, params={"ticket": ticket})
    assert first.status_code == 200
    assert "ab" in first.text
    assert (again.status_code, again.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ticket not in again.text


async def test_a_wrong_key_is_not_mended_by_a_ticket() -> None:
    async with client(answered()) as http:
        ticket = await issued(http)
        answer = await http.get(
            STREAM, params={"ticket": ticket}, headers={"Authorization": "Bearer wrong-key"}
        )
    assert answer.status_code == 401


@pytest.mark.parametrize("ticket", ["", "a.b", "%00", "é", "x" * 3000])
async def test_a_ticket_that_is_none_is_401(ticket: str) -> None:
    async with client(answered()) as http:
        del http.headers["Authorization"]
        answer = await http.get(STREAM, params={"ticket": ticket})
    assert answer.status_code == 401


async def test_another_tenant_gets_no_ticket_for_it() -> None:
    async with client(answered()) as http:
        answer = await http.post(
            f"/v1/requests/{REQUEST_ID}/ticket", headers={"Authorization": f"Bearer {OTHER_KEY}"}
        )
    assert answer.status_code == 404
