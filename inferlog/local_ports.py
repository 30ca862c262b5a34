"""Which ports are free."""

import errno
import socket
from collections.abc import Iterable

from inferlog.problems import CommandFailed

_PROBES_MAX = 1000


def is_free(host: str, port: int) -> bool:
    """Whether somebody could listen there. Probes without SO_REUSEPORT, as sharing hides a holder."""
    return _refusal(host, port) is None


def _refusal(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as servers do: a port that is only cooling off after a stop is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None


def require_free(host: str, ports: Iterable[int], flag: str) -> None:
    """Raises CommandFailed for the first port that cannot be had, naming the flag to change."""
    for port in ports:
        error = _refusal(host, port)
        if error is None:
            continue
        if error.errno == errno.EADDRINUSE:
            raise CommandFailed(
                f"port {port} on {host} is taken by another process. Stop that one, or choose "
                f"another port with {flag}."
            )
        if error.errno == errno.EACCES:
            raise CommandFailed(
                f"port {port} needs rights this user does not have. Choose one above 1023 with {flag}."
            )
        raise CommandFailed(
            f"cannot listen on {host}:{port} ({error.strerror}). Is the address one of this machine?"
        )


def free_from(host: str, first: int, count: int) -> list[int]:
    """The first `count` free ports from `first` upwards. Raises CommandFailed if there are none."""
    found: list[int] = []
    for port in range(first, min(65536, first + _PROBES_MAX)):
        if is_free(host, port):
            found.append(port)
            if len(found) == count:
                return found
    raise CommandFailed(f"no {count} free ports from {first} upwards on {host}")


def any_free(host: str, count: int) -> int:
    """A port such that it and the next `count - 1` are free now."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((host, 0))
            first = int(probe.getsockname()[1])
        if first + count < 65536 and all(is_free(host, first + i) for i in range(count)):
            return first
    raise CommandFailed(f"no {count} free ports in a row on {host}")
