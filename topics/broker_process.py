"""One Java child: how it is started, asked, and what its log says when it fails."""

import asyncio
import contextlib
import os
import re
import socket
import struct
import sys
from pathlib import Path

from topics.broker_config import HOST

_LOG_BYTES_MAX = 8 * 1024 * 1024

# Java does not know how to die with its parent, so this little program asks the kernel for it
# (Linux: PR_SET_PDEATHSIG, kept over exec) and becomes Java. The signal comes when the *thread* that
# forked ends, hence clusters are started from the main thread. SIGKILL, since a broker without its
# quorum can take minutes over a polite end; what it acknowledged is on the log all the same.
# Elsewhere (macOS) it only becomes Java: a parent killed by SIGKILL then leaves it behind.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_REASON_BYTES_MAX = 20_000
_THROWN = re.compile(r"[\w.$]+(Exception|Error): ")
_REASONS = (
    ("No space left on device", "the disk is full", "make room, or choose another data directory"),
    ("Address already in use", "a port was taken", "stop what holds it, or choose other ports"),
    ("Failed to acquire lock", "another Kafka uses this data", "stop it, or choose another folder"),
    ("OutOfMemoryError", "Java ran out of memory", "raise heap_mb"),
    ("Permission denied", "a file may not be written", "see who owns the data directory"),
)


async def spawn(command: list[str], folder: Path, log: Path) -> asyncio.subprocess.Process:
    """Starts the command in `folder` with its output appended to `log`, tied to this process."""
    _rotate(log)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            # Its own group: Ctrl-C is for whoever supervises, who stops the broker last.
            start_new_session=True,
        )


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))


def explain(log: Path, start: int = 0) -> str:
    """The reason of a failed start and its remedy, as far as the log tells from byte `start` on.

    What an earlier start said, which is in the same file, is no reason of this one.
    """
    with contextlib.suppress(OSError):
        said = log.read_bytes()
        # shorter than before: it was begun anew
        said = said[start if start <= len(said) else 0 :]
        text = said[-_REASON_BYTES_MAX:].decode(errors="replace")
        for sign, reason, remedy in _REASONS:
            if sign in text:
                return f"{reason}: {remedy} (log: {log})"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        thrown = [line for line in lines if _THROWN.match(line)]
        if lines:
            return f"it said: {(thrown[:1] or lines[-1:])[0][:300]} (log: {log})"
    return f"its log says why: {log}"


def port_taken(port: int) -> str | None:
    """Why a loopback port cannot be listened on; None when it can."""
    with socket.socket() as probe:
        # As Java does: a port that is only cooling off after a stop is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


async def answers(port: int) -> bool:
    """Asks for ApiVersions (v0): a broker answers only once it has joined its cluster."""
    request = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(struct.pack(">i", len(request)) + request)
                _, correlation, error_code = struct.unpack(">iih", await reader.readexactly(10))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    return (correlation, error_code) == (1, 0)
