"""Which ports are free."""

import socket

from inferlog.problems import CommandFailed

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (what to call, not to bind)


def url_host(host: str) -> str:
    """What to call, written as in a URL, where `host` is listened on."""
    host = _WILDCARDS.get(host, host)
    return f"[{host}]" if ":" in host else host


def listen_alone(host: str, port: int) -> socket.socket:
    """A socket that listens there, as the only one. Raises OSError.

    Without SO_REUSEPORT, as sharing would hide a holder.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # as servers do: a port that is only cooling off after a stop is free
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1)
    except BaseException:
        listening.close()
        raise
    return listening


def is_free(host: str, port: int) -> bool:
    """Whether somebody could listen there now."""
    try:
        listen_alone(host, port).close()
    except OSError:
        return False
    return True


def any_free(host: str, count: int) -> int:
    """A port such that it and the next `count - 1` are free now."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((host, 0))
            first = int(probe.getsockname()[1])
        if first + count < 65536 and all(is_free(host, first + i) for i in range(count)):
            return first
    raise CommandFailed(f"no {count} free ports in a row on {host}")
