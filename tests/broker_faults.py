"""What befalls a broker, carried out to the end before a test goes on."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from topics.broker import LocalCluster


async def kill(cluster: LocalCluster) -> None:
    """Returns when nothing of the broker runs any more."""
    cluster.kill()
    await cluster.wait_exit()


@contextlib.asynccontextmanager
async def frozen(cluster: LocalCluster) -> AsyncIterator[None]:
    """The broker's sockets stay open and nobody answers.

    A stop is carried out by the threads themselves, each when it next gets a processor: until the
    last one has stopped, a broker on a busy machine may still take a record and acknowledge it.
    """
    (pid,) = cluster.pids().values()
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            while running_threads(pid):
                await asyncio.sleep(0.01)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def running_threads(pid: int) -> list[str]:
    """Threads of a process that have not stopped (Linux)."""
    stats = [it.read_text() for it in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [it for it in stats if it.rpartition(")")[2].split()[0] != "T"]


def sockets_to(cluster: LocalCluster) -> list[str]:
    """This process's sockets that lead to one of the brokers."""
    ports = {int(it.rpartition(":")[2]) for it in cluster.bootstrap.split(",")}
    return [
        str(it) for it in psutil.Process().net_connections() if it.raddr and it.raddr.port in ports
    ]
