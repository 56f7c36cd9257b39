"""Closes exporters in bounded time."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Thread

_LAST_MOMENT = 1.0
"""Seconds for the rest to end once it was told to stop."""


def drain(flush: Sequence[Callable[[], None]], *, stop: Sequence[Callable[[], None]], within: timedelta) -> None:
    """Run all of `flush` side by side; what is not done `within` that time is cut short by all of `stop`."""
    threads = [Thread(target=work, name="telemetry-drain", daemon=True) for work in flush]
    for thread in threads:
        thread.start()
    _join(threads, within.total_seconds())
    if any(thread.is_alive() for thread in threads):
        for end in stop:
            end()
        _join(threads, _LAST_MOMENT)


def _join(threads: Sequence[Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
