"""The link between a replica's process and the supervisor that started it: a socket pair.

The replica sends how its start went. The supervisor sends the states of the private database, each in a line, and asks
for a drain by closing its end, after a line of its own if a person waits for it.
"""

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from typing import Final

from turnkeeper.database_state import DatabaseState, NotifyState
from turnkeeper.shutdown_signals import ShutdownRequest

SERVING: Final = b"serving\n"
"""What a replica sends once it serves. Anything else is the reason why it cannot start."""
INTERRUPTED: Final = b"interrupted\n"
"""What the supervisor sends before it asks for a drain, if Ctrl-C ended it."""
_PR_SET_PDEATHSIG: Final = 1
_MOST_RECEIVED: Final = 4096


def database_line(state: DatabaseState) -> bytes:
    """Returns what the supervisor sends when the private database has this state."""
    return f"{state}\n".encode()


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
        self._received: asyncio.Task[None] | None = None
        self._socket.set_inheritable(False)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # nothing to read: the supervisor is alive
            if not self._socket.recv(1, socket.MSG_PEEK):
                sys.exit("the supervisor is gone")

    def report_serving(self, shutdown: ShutdownRequest, *, on_database: NotifyState) -> None:
        """Reports that this replica serves. Requests the shutdown when the stream ends, or has ended before.

        Calls `on_database` with each state of the private database, in order.
        """
        self._send(SERVING)
        self._received = asyncio.create_task(self._receive(shutdown, on_database))

    def report_failure(self, reason: str) -> None:
        """Reports why this replica cannot start."""
        self._send(reason.encode())

    def _send(self, report: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor has closed its end
            self._socket.sendall(report)

    async def _receive(self, shutdown: ShutdownRequest, on_database: NotifyState) -> None:
        loop = asyncio.get_running_loop()
        lines = b""
        try:
            while received := await loop.sock_recv(self._socket, _MOST_RECEIVED):
                *complete, lines = (lines + received).split(b"\n")
                for line in complete:
                    if line == INTERRUPTED.rstrip():
                        shutdown.interrupt()
                    else:
                        await on_database(DatabaseState(line.decode()))
        finally:
            shutdown.request()
