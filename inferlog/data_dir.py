"""The folder of a running `inferlog up`: its lock, its state for other commands, its keys."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from inferlog.problems import CommandFailed, WrongUsage

STATE = "up.json"
LOCK = "up.lock"
KEYS = "api-keys"
LOGS = "logs"
KEY_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class UpState:
    """What a running `up` tells other commands. Never a key: only where keys lie."""

    pid: int
    url: str
    replica_urls: tuple[str, ...]
    bootstrap: str
    api_keys_file: str | None
    metrics: dict[str, int]
    pids: dict[str, int]


class DataDir:
    """The folder; `lock` makes it ours as long as the process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Makes the folder and takes it. Raises CommandFailed if another `up` has it, or no disk."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise self._no_disk(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(20).strip()
            lock.close()
            by = f" (pid {holder})" if holder else ""
            raise CommandFailed(
                f"inferlog is already up{by} on {self.path}. Stop that one, or choose another "
                "folder with --data-dir and another --port."
            ) from None
        self._lock = lock
        try:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        except OSError as error:
            raise self._no_disk(error) from error

    def _no_disk(self, error: OSError) -> CommandFailed:
        if error.errno == errno.ENOSPC:
            return CommandFailed(f"no space left for {self.path}. Make room, or use --data-dir.")
        why = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            why = "there is a file where a folder should be"
        return CommandFailed(
            f"cannot write to {self.path} ({why}). Choose another folder with --data-dir."
        )

    def release(self) -> None:
        """Lets go, and forgets the state. Idempotent."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.path / STATE).unlink(missing_ok=True)
                self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def log_file(self, name: str) -> Path:
        """Where a child writes."""
        return self.path / LOGS / f"{name}.log"

    def keys_file(self) -> Path:
        """The file of keys, generated with one key of tenant `default` if it is missing."""
        path = self.path / KEYS
        if not path.exists():
            key = f"il-{secrets.token_urlsafe(KEY_BYTES)}"
            try:
                write_private(path, f"default:{key}\n")
            except OSError as error:
                raise self._no_disk(error) from error
        return path

    def write_state(self, state: UpState) -> None:
        """Tells other commands."""
        write_private(self.path / STATE, json.dumps(asdict(state), indent=1) + "\n")

    def read_state(self) -> UpState | None:
        """What the running `up` tells; None if there is none. Raises CommandFailed if unreadable."""
        try:
            known = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{self.path / STATE} cannot be read ({error})") from None
        try:
            state = UpState(**{**known, "replica_urls": tuple(known["replica_urls"])})
        except (KeyError, TypeError):
            raise CommandFailed(
                f"{self.path / STATE} is damaged, or of another version: is the inferlog up that "
                "runs there an older one?"
            ) from None
        return state if _alive(state.pid) else None


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    part.replace(path)


def key_values(path: Path) -> list[str]:
    """All keys in a file of tenant:key lines, tenant `default`'s first.

    Raises WrongUsage if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise WrongUsage(f"cannot read keys from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WrongUsage(f"cannot read keys from {path}: it is no UTF-8 text") from None
    keys = []
    for line in lines:
        tenant, mark, key = line.strip().partition(":")
        if mark and not tenant.startswith("#"):
            keys.append((tenant != "default", key.strip()))
    return [key for _, key in sorted(keys, key=lambda pair: pair[0])]


def first_key(path: Path) -> str | None:
    """The first of `key_values`, if there is any."""
    keys = key_values(path)
    return keys[0] if keys else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
