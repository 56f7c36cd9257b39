"""Closes exporters in bounded time."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Thread

_STOP_S = 1.0
"""Seconds that the flushes get to end after they were stopped."""


def drain(flush: Sequence[Callable[[], None]], *, stop: Sequence[Callable[[], None]], within: timedelta) -> bool:
    """Runs all of `flush` side by side. Calls all of `stop` if one of them still runs after `within`.

    Returns after `within` and one second at most. Returns False if `stop` was called.
    """
    threads = [Thread(target=work, name="telemetry-drain", daemon=True) for work in flush]
    for thread in threads:
        thread.start()
    _join(threads, within.total_seconds())
    in_time = not any(thread.is_alive() for thread in threads)
    if not in_time:
        for end in stop:
            end()
        _join(threads, _STOP_S)
    return in_time


def _join(threads: Sequence[Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
