"""Reads and writes durations as people do (250ms, 30s, 1.5m, 1h, 7d), and spreads them."""

import re
from datetime import timedelta
from typing import TypeVar

EXAMPLES = "250ms, 30s, 10m, 1h or 7d"
_FORM = re.compile(r"(\d{1,6}(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds of each unit."""
_MOST_SECONDS = 999_999
"""The longest duration that is written in seconds: `parse` reads six digits before the point."""

D = TypeVar("D", float, timedelta)


def parse(text: str) -> timedelta:
    """Returns the duration. Raises ValueError if the text is not a number with a unit, or 0."""
    if text.strip() == "0":
        return timedelta()
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as {EXAMPLES}")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def written(duration: timedelta) -> str:
    """Returns the text that `parse` reads as this duration, to the microsecond."""
    seconds = duration.total_seconds()
    return f"{seconds:.6f}s" if seconds < _MOST_SECONDS else f"{seconds / _UNITS['d']:.12f}d"


def jittered(duration: D, jitter: float) -> D:
    """Returns the duration spread by ±25 %, so that replicas do not act at the same time.

    `jitter` is a random number from 0 to 1.
    """
    return duration * (0.75 + jitter / 2)
