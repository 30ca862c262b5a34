"""Tickets: what lets a browser's `EventSource`, which can send no key, in to one stream, once.

A ticket says tenant, request and end of its life, signed with a secret that is made from the API
keys: any replica with the same keys can check it without asking anyone. That it is used once only is
settled by the log: whoever opens a stream with it appends that to `control`, and the first record
that names a ticket wins.
"""

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec

from core.errors import Refusal
from core.limits import Limits
from runtime.metrics import Metrics
from schemas.ids import bare_request_id

TICKET_CHARS_MAX = 1024
_PATH = re.compile(r"/v1/requests/([^/]+)/stream")


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ticket says. `ends_ms` is broker time, `nonce` names the ticket."""

    tenant: str
    request_id: str
    ends_ms: int
    nonce: str


class Tickets:
    """Issues and checks; knows nothing of what was used."""

    def __init__(self, secret: bytes, limits: Limits) -> None:
        self._secret = secret
        self._limits = limits

    def issue(self, tenant: str, request_id: str, now_ms: float) -> str:
        """A new ticket for one stream."""
        ends_ms = int(now_ms + 1000 * self._limits.ticket_seconds)
        said = msgspec.json.encode(Claims(tenant, request_id, ends_ms, secrets.token_hex(16)))
        return f"{_text(said)}.{_text(self._sign(said))}"

    def read(self, ticket: str, request_id: str, now_ms: float) -> Claims | None:
        """What a ticket says; None unless it is ours, alive, and for this request."""
        said_text, mark, signature_text = ticket.partition(".")
        if len(ticket) > TICKET_CHARS_MAX or not mark:
            return None
        try:
            said, signature = _bytes(said_text), _bytes(signature_text)
        except (binascii.Error, ValueError):
            return None
        if not hmac.compare_digest(signature, self._sign(said)):
            return None
        try:
            claims = msgspec.json.decode(said, type=Claims)
        except msgspec.DecodeError:
            return None
        return claims if claims.request_id == request_id and claims.ends_ms > now_ms else None

    def _sign(self, said: bytes) -> bytes:
        return hmac.digest(self._secret, said, "sha256")


class Redeemer(Protocol):
    """What of the pipeline admission needs."""

    def now_ms(self) -> float: ...
    async def redeem(self, tenant: str, request_id: str, ticket: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class TicketAdmission:
    """The gate's second way in: `GET /v1/requests/{id}/stream?ticket=…`, and nothing else."""

    tickets: Tickets
    redeemer: Redeemer
    metrics: Metrics

    async def admit(self, scope: MutableMapping[str, Any]) -> str | None:
        """The tenant, once; None without a ticket. Raises Refusal for one that does not hold."""
        path = _PATH.fullmatch(scope["path"])
        if scope["method"] != "GET" or path is None:
            return None
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("ticket")
        if not given:
            return None
        try:
            request_id = bare_request_id(path[1])
        except ValueError:
            request_id = ""
        claims = self.tickets.read(given[-1], request_id, self.redeemer.now_ms())
        if claims is None:
            raise self._refused("invalid")
        if not await self.redeemer.redeem(claims.tenant, claims.request_id, claims.nonce):
            raise self._refused("used")
        self.metrics.tickets.labels("redeemed").inc()
        return claims.tenant

    def _refused(self, outcome: str) -> Refusal:
        self.metrics.tickets.labels(outcome).inc()
        return Refusal(
            "invalid_api_key",
            "The ticket is not valid for this stream, was used, or is too old: get a new one with "
            "POST /v1/requests/{id}/ticket.",
        )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
