"""Log lines about one tool server, and no more than an operator can use: what causes them is up to the server."""

import logging
import time
from typing import Final

MOST_LINES: Final = 20
"""Lines about one server within PERIOD, at most."""
PERIOD: Final = 600.0
"""Seconds."""

logger = logging.getLogger(__name__)


class ServerLog:
    """Writes WARNINGs about one server."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._written: list[float] = []

    def write(self, text: str) -> None:
        """Writes a line, unless there were too many. `text` goes on after the server's name."""
        now = time.monotonic()
        self._written = [at for at in self._written if now - at < PERIOD]
        if len(self._written) == MOST_LINES:
            return
        self._written.append(now)
        if len(self._written) == MOST_LINES:
            text = f"{text}; more lines about it are left out for {PERIOD / 60:g} minutes"
        logger.warning("the tool server %s%s", self._name, text)
