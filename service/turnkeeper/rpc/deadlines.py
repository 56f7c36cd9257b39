"""How long a call may wait: for as long as it asks, but not beyond its own deadline."""

from turnkeeper.rpc.context import Context

DEFAULT_WAIT = 60.0
"""Seconds that a call waits if it does not set `wait`."""
MARGIN = 0.5
"""Seconds before the caller's deadline at which a wait ends: the response needs them to arrive."""


def within_deadline(seconds: float, context: Context) -> float:
    """Returns the wait in seconds, cut to MARGIN before the caller's deadline; never negative."""
    remaining: float | None = context.time_remaining()
    return max(0.0, min(seconds, remaining - MARGIN)) if remaining is not None else seconds
