"""Ports that an `up` takes for its children before they exist, and keeps as long as it lives.

A port that was only probed can be taken by another program before the child that it was meant for
binds it; two `up`s that start at once would even share an API port, each child seeing nothing wrong.
So the port is bound here, alone, and stays bound: without listening, which costs no connection, and
open to sockets of the same user that ask to share it (SO_REUSEPORT), as our children do. Whoever
does not share, as the first bind of every other `up`, is refused by the kernel.
"""

import errno
import random
import socket
import sys
import time
from collections.abc import Iterable

from inferlog.local_ports import listen_alone
from inferlog.problems import CommandFailed

_PROBES_MAX = 1000
_TRIES = 3
_PAUSE_SECONDS = 0.1

CAN_HOLD = sys.platform == "linux"
"""Elsewhere a bound port cannot be opened to others later: there it is only probed, as before."""


class HeldPorts:
    """`take…` as often as needed, `release` at the end."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, host: str, ports: Iterable[int], flag: str) -> None:
        """Takes all of them. Raises CommandFailed for the first that cannot be had, naming the flag."""
        for port in ports:
            try:
                self._hold_patiently(host, port)
            except OSError as error:
                raise CommandFailed(_why(host, port, error, flag)) from None

    def take_from(self, host: str, first: int, count: int) -> list[int]:
        """Takes the first `count` free ports from `first` upwards. Raises CommandFailed."""
        found: list[int] = []
        for port in range(first, min(65536, first + _PROBES_MAX)):
            try:
                self._hold(host, port)
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
        raise CommandFailed(f"no {count} free ports from {first} upwards on {host}")

    def release(self) -> None:
        """Lets go of all. Idempotent."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

    def _hold_patiently(self, host: str, port: int) -> None:
        """Tries again for a moment: a connection from that port may be ending, or another `up` ask for
        the same ports just now and be refused one of them.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._hold(host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE_SECONDS)
        return self._hold(host, port)

    def _hold(self, host: str, port: int) -> None:
        held = listen_alone(host, port)
        if not CAN_HOLD:
            held.close()
            return
        self._sockets.append(held)
        # While it listened nobody else could; from here on it is the options that keep others out.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.shutdown(socket.SHUT_RDWR)  # no longer listening, and still bound


def _why(host: str, port: int, error: OSError, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another process. Stop that one, or choose "
            f"another port with {flag}."
        )
    if error.errno == errno.EACCES:
        return (
            f"port {port} needs rights this user does not have. Choose one above 1023 with {flag}."
        )
    return f"cannot listen on {host}:{port} ({error.strerror}). Is the address one of this machine?"
