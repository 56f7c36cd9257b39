"""Carried from service/turnkeeper/rpc/chat.py."""

from turnkeeper.rpc.interceptor import Context

DEFAULT_WAIT = 60.0


MARGIN = 0.5
"""Seconds before the caller's deadline at which a wait ends."""


def within(asked: float, context: Context) -> float:
    """The wait, cut to half a second before the caller's deadline."""
    left: float | None = context.time_remaining()
    return max(0.0, min(asked, left - MARGIN)) if left is not None else asked
