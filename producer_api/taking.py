"""A client that takes nothing of what is sent to it: its connection would be kept, full, for ever."""

import asyncio
import fcntl
import logging
import struct
import termios

from runtime.metrics import Metrics

_log = logging.getLogger(__name__)


class Taking:
    """Watched from when much waits to be sent until it was taken; not one byte in time ends it."""

    def __init__(self, transport: asyncio.Transport, seconds: float, metrics: Metrics) -> None:
        self._transport = transport
        self._seconds = seconds
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """From now on. What was watched before is watched anew."""
        self.stop()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._check, self._unsent_bytes())

    def stop(self) -> None:
        """No more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unsent_bytes(self) -> int:
        """Also in the kernel, which asks for more only when much of what it has was taken."""
        fd = self._transport.get_extra_info("socket").fileno()
        if fd < 0:
            return 0
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
        return int(in_kernel) + self._transport.get_write_buffer_size()

    def _check(self, before_bytes: int) -> None:
        if self._unsent_bytes() < before_bytes:
            self.watch()
            return
        self._metrics.stalled.inc()
        _log.info("a client took nothing for %s s: its connection ends", self._seconds)
        self._transport.abort()
