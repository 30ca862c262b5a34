"""Who calls: default deny. Whatever is not listed as open needs a key, unknown paths included."""

import stat
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import InferlogError, Refusal
from core.validation import TENANT_CHARS_MAX

from producer_api.error_responses import error_response

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
DEFAULT_TENANT = "default"
KEY_CHARS_MIN = 16
KEY_CHARS_MAX = 512


class UnusableKeys(InferlogError):
    """The keys cannot be used as they are; the text says why, and never shows one."""


def load_keys(api_key: str | None, keys_file: Path | None) -> "Keys":
    """The keys of `INFERLOG_API_KEY` (tenant `default`) and of a file of `tenant:key` lines.

    Raises UnusableKeys, also when there is none: an API without keys would refuse everybody.
    """
    pairs: list[tuple[str, str]] = []
    if api_key is not None:
        pairs.append((DEFAULT_TENANT, api_key.strip()))
    if keys_file is not None:
        pairs += _read_file(keys_file)
    if not pairs:
        raise UnusableKeys("no API key is set: INFERLOG_API_KEY or INFERLOG_API_KEYS_FILE")
    return Keys(pairs)


def _read_file(path: Path) -> list[tuple[str, str]]:
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableKeys(f"{path} cannot be read: {error.__class__.__name__}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UnusableKeys(f"{path} can be read by others: chmod 600 {path}")
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()  # noqa: PLW2901
        if not line or line.startswith("#"):
            continue
        tenant, colon, key = line.partition(":")
        if not colon or not tenant.strip() or not key.strip():
            raise UnusableKeys(f"{path}, line {number}: tenant:key is expected")
        pairs.append((tenant.strip(), key.strip()))
    return pairs


class Keys:
    """Only digests are kept. A key is found by its SHA-256, whose bytes tell nothing of the key."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._tenants: dict[bytes, tuple[bytes, str]] = {}
        for tenant, key in pairs:
            if not KEY_CHARS_MIN <= len(key) <= KEY_CHARS_MAX or not key.isascii():
                raise UnusableKeys(
                    f"the key of tenant {tenant!r} must have {KEY_CHARS_MIN} to {KEY_CHARS_MAX} "
                    "ASCII characters"
                )
            if len(tenant) > TENANT_CHARS_MAX:
                raise UnusableKeys(f"names of tenants have at most {TENANT_CHARS_MAX} characters")
            digest = sha256(key.encode()).digest()
            if self._tenants.get(digest, (b"", tenant))[1] != tenant:
                raise UnusableKeys("two tenants have the same key")
            self._tenants[digest] = (digest, tenant)

    def tenant(self, authorization: bytes | None) -> str | None:
        """The tenant that an `Authorization` header names; None if it names none."""
        if authorization is None or len(authorization) > KEY_CHARS_MAX + 16:
            return None
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = sha256(key.strip()).digest()
        found = self._tenants.get(digest)
        if found is None or not compare_digest(found[0], digest):
            return None
        return found[1]


class Authentication:
    """Puts the tenant into the request's state, or answers 401 before anything else is read."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets, no lifespan: nothing to let through
        if scope["path"] not in OPEN_PATHS:
            authorization = _header(scope["headers"], b"authorization")
            tenant = self._keys.tenant(authorization)
            if tenant is None:
                await error_response(_refusal(authorization))(scope, receive, send)
                return
            scope["state"]["tenant"] = tenant
        await self._app(scope, receive, send)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The one header of that name; two of them name nobody."""
    found = [value for key, value in headers if key == name]
    return found[0] if len(found) == 1 else None


def _refusal(authorization: bytes | None) -> Refusal:
    if authorization is None:
        message = "No API key was sent: use the header `Authorization: Bearer <key>`."
    elif not authorization.lower().startswith(b"bearer "):
        message = "The API key must be sent as `Authorization: Bearer <key>`."
    else:
        message = "The API key is not valid."
    return Refusal("invalid_api_key", message)


