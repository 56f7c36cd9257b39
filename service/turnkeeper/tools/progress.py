"""How far a call is, in lines for people: few, short and harmless, however many the tool reports."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final

from turnkeeper.visible_text import visible

INTERVAL: Final = 0.25
"""Seconds between two lines of a call that are shown, at least."""
LONGEST: Final = 200
"""Characters of a line that is shown, at most."""


class CallProgress:
    """Takes the lines of one call from any thread, and shows the newest one at most once an interval.

    A line that comes earlier replaces the one that waits: a flood costs the event loop no more than a few lines.
    """

    def __init__(self, show: Callable[[str], None], *, interval: float = INTERVAL) -> None:
        """`show` is called in the current event loop."""
        self._show = show
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._line: str | None = None
        """The newest line that was not shown."""
        self._is_scheduled = False
        self._is_closed = False

    def report(self, line: str) -> None:
        """Takes a line. Waits for nothing."""
        text = str(line)[:LONGEST]
        with self._lock:
            self._line = text
            if self._is_scheduled or self._is_closed:
                return
            self._is_scheduled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: no watcher is left
            self._loop.call_soon_threadsafe(self._show_newest)

    def close(self) -> None:
        """Shows nothing more: the call has ended, or its time is over."""
        self._is_closed = True

    def _show_newest(self) -> None:
        with self._lock:
            line, self._line = self._line, None
            self._is_scheduled = line is not None and not self._is_closed
            if not self._is_scheduled:
                return
        self._loop.call_later(self._interval, self._show_newest)
        if text := visible(" ".join((line or "").split()))[:LONGEST]:
            self._show(text)
