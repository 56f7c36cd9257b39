"""The link between a replica's process and the supervisor that started it: a socket pair."""

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

SERVING: Final = b"serving\n"
"""What a replica sends once it serves. Anything else is the reason why it cannot start."""
_PR_SET_PDEATHSIG: Final = 1


class ParentLink:
    """The replica's end. It reports how the start went; the end of the stream asks the replica to drain.

    The drain is not requested by a signal: a service manager may send SIGTERM to all processes of the service, and a
    second SIGTERM ends a server at once.
    """

    def __init__(self, descriptor: int) -> None:
        """From here on the kernel kills this process when the supervisor dies, even by kill -9.

        Exits the process if the supervisor has died already.
        """
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # nothing to read: the supervisor is alive
            if not self._socket.recv(1):
                sys.exit("the supervisor is gone")

    def report_serving(self, *, on_drain: Callable[[], object]) -> None:
        """Reports that this replica serves. Calls `on_drain` when the stream ends, or has ended before."""
        self._send(SERVING)
        asyncio.get_running_loop().add_reader(self._socket, self._receive_end, on_drain)

    def report_failure(self, reason: str) -> None:
        """Reports why this replica cannot start."""
        self._send(reason.encode())

    def _send(self, report: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor has closed its end
            self._socket.sendall(report)

    def _receive_end(self, on_drain: Callable[[], object]) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        on_drain()
