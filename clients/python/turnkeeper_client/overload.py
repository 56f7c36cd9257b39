"""When a call is made again that was refused: by an overloaded replica, in its session's line, or beyond a rate."""

import threading
import time

from turnkeeper_client.errors import SessionError
from turnkeeper_client.pb.v1 import error_pb2

# Calls that may be made again before any was answered.
FIRST_TRIES = 10.0
# Calls that may be made again for each call that was answered: a service that is overloaded for long gets little more
# than the calls themselves.
TRIES_PER_ANSWER = 0.2
# Errors of calls that stored nothing, and that the service asks to make again.
AGAIN = frozenset(
    {
        error_pb2.SESSION_ERROR_CODE_OVERLOADED,
        error_pb2.SESSION_ERROR_CODE_SESSION_CONTENDED,
        error_pb2.SESSION_ERROR_CODE_RATE_LIMIT_EXCEEDED,
    }
)


class RetryBudget:
    """Limits how many calls are made again, beside those that are answered."""

    def __init__(self) -> None:
        self._left = FIRST_TRIES
        self._lock = threading.Lock()

    def answered(self) -> None:
        """Counts a call that was answered."""
        with self._lock:
            self._left = min(FIRST_TRIES, self._left + TRIES_PER_ANSWER)

    def take(self) -> bool:
        """Takes one try. Returns False if there is none."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


BUDGET = RetryBudget()
"""That of this process."""


def seconds_to_try_again(error: SessionError, *, deadline: float, budget: RetryBudget = BUDGET) -> float:
    """Returns the service's delay in seconds. Raises `error` if another try would not help, or come too late.

    `deadline` is that of the call, in monotonic seconds.
    """
    wait = error.retry_after
    if error.code not in AGAIN or wait is None:
        raise error
    if time.monotonic() + wait.total_seconds() >= deadline or not budget.take():
        raise error
    return wait.total_seconds()
