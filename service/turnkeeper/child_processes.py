"""What those who keep a child process running share: its port, how it ended, and how often it is started again."""

import signal
import socket
import time
from typing import Final

RESTARTS: Final = 3
"""How often a child is started again within RESTART_PERIOD, at most."""
RESTART_PERIOD: Final = 60.0
"""Seconds."""
RESTART_PAUSE: Final = 1.0
"""Seconds from a restart that failed to the next one."""


class RestartBudget:
    """Counts the restarts of one child."""

    def __init__(self) -> None:
        self._restarts: list[float] = []

    def take(self) -> int:
        """Takes one restart. Returns how many there were within RESTART_PERIOD, with this one; 0 if none is left."""
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_PERIOD]
        if len(self._restarts) == RESTARTS:
            return 0
        self._restarts.append(now)
        return len(self._restarts)


def how_it_ended(status: int) -> str:
    """Returns the end of a sentence about a process with this exit status; a negative one is a signal's number."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def free_port() -> int:
    """Returns a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
