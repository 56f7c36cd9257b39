"""A replica's line to the supervisor that started it."""

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

SERVING: Final = b"serving\n"
_PR_SET_PDEATHSIG: Final = 1


class Lifeline:
    """What became of the start goes up; the end of the line comes down, and asks for the drain.

    Not a signal: whoever stops a service may send SIGTERM to all of its processes, and a second one means at once.
    """

    def __init__(self, descriptor: int) -> None:
        """From here on this process ends with its supervisor, even by kill -9. SystemExit where that has ended."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # nothing was said: it is there
            if not self._socket.recv(1):
                sys.exit("the supervisor is gone")

    def serves(self, *, cut: Callable[[], object]) -> None:
        """Say so; `cut` is called when the line ends, also when it has ended before."""
        self._say(SERVING)
        asyncio.get_running_loop().add_reader(self._socket, self._hear, cut)

    def cannot_start(self, reason: str) -> None:
        self._say(reason.encode())

    def _say(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # where nobody listens any more, the line has ended
            self._socket.sendall(what)

    def _hear(self, cut: Callable[[], object]) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        cut()
