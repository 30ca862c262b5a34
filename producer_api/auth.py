"""API keys: which tenant speaks. Only hashes are kept; a key never reaches a log or an error."""

import hashlib
import hmac
import stat
from collections.abc import Mapping
from pathlib import Path

from core.errors import InferlogError

KEY_CHARS_MIN = 8
KEY_CHARS_MAX = 512


class KeysUnusable(InferlogError):
    """No key was given, or the file of keys cannot be used; the message says what to do."""


class ApiKeys:
    """SHA-256 of a key -> tenant."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        self._tenants = {hashlib.sha256(key.encode()).digest(): t for key, t in tenants.items()}

    @property
    def common_secret(self) -> bytes:
        """What only replicas with the same keys know; of no use to find a key out."""
        parts = sorted(digest + tenant.encode() for digest, tenant in self._tenants.items())
        return hmac.digest(b"".join(parts), b"inferlog tickets", "sha256")

    def tenant(self, authorization: bytes | None) -> str | None:
        """The tenant of an `Authorization: Bearer KEY` header; None if it is not one of ours."""
        if authorization is None or len(authorization) > KEY_CHARS_MAX + 8:
            return None
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(key.strip()).digest()
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                return tenant
        return None


def load_keys(api_key: str | None, file: Path | None) -> ApiKeys:
    """Keys of a setting (tenant `default`) and of a file of `tenant:key` lines. Raises KeysUnusable."""
    tenants: dict[str, str] = {}
    if api_key:
        tenants[_checked(api_key, "INFERLOG_API_KEY")] = "default"
    if file is not None:
        try:
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise KeysUnusable(f"{file} may be read by others: chmod 600 {file}")
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnusable(f"the file of API keys cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            tenant, mark, key = text.partition(":")
            if not mark or not tenant.strip() or len(tenant) > 128:
                raise KeysUnusable(f"{file}, line {number}: tenant:key is expected")
            tenants[_checked(key.strip(), f"{file}, line {number}")] = tenant.strip()
    if not tenants:
        raise KeysUnusable(
            "no API key: set INFERLOG_API_KEY, or name a file of tenant:key lines "
            "(`inferlog up` makes one)"
        )
    return ApiKeys(tenants)


def _checked(key: str, where: str) -> str:
    if not KEY_CHARS_MIN <= len(key) <= KEY_CHARS_MAX or not key.isascii() or " " in key:
        raise KeysUnusable(
            f"{where}: a key has {KEY_CHARS_MIN} to {KEY_CHARS_MAX} ASCII characters, no spaces"
        )
    return key
