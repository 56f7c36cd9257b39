"""Decides whether a broken stream is opened again, and after how long."""

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from time import monotonic

import grpc

from turnkeeper_client.errors import SessionError, TransportError, Unauthenticated
from turnkeeper_client.overload import AGAIN
from turnkeeper_client.pb.v1 import error_pb2


class Resume(Enum):
    """Whether and when a stream that ended with an error is opened again."""

    AT_ONCE = auto()
    WITH_BACKOFF = auto()
    NEVER = auto()


# Statuses without the service's own details, after which a stream is opened again: a proxy or the connection made them.
# DEADLINE_EXCEEDED is this client's own time limit for one stream; the service is well.
BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

# Refusals of a stream that the service could not take: nothing was begun. Some come with the advice of a unary call.
REFUSALS = AGAIN | {error_pb2.SESSION_ERROR_CODE_SERVICE_UNAVAILABLE}


def resume_after(error: SessionError | TransportError) -> Resume:
    """Returns what the error's own advice asks for: RESUME_STREAM, or SAME_CALL after a refusal that names a delay.

    Any other advice is final. A status without the service's details has no advice: BROKEN lists those after which
    the stream may go on.
    """
    if isinstance(error, TransportError):
        return Resume.WITH_BACKOFF if error.status in BROKEN else Resume.NEVER
    if error.retry == error_pb2.RETRY_ADVICE_SAME_CALL and error.code in REFUSALS and error.retry_after is not None:
        return Resume.WITH_BACKOFF
    if error.retry != error_pb2.RETRY_ADVICE_RESUME_STREAM:
        return Resume.NEVER
    return Resume.AT_ONCE if error.retry_after is None else Resume.WITH_BACKOFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePolicy:
    """How patient `stream()` and `follow()` are."""

    # A stream without even a keep-alive for this long is dead; the service sends one every 15 s.
    silence: timedelta = timedelta(seconds=45)
    # How long a stream that has begun may go without any response before its error is raised; it is always
    # tried once more. The same for a stream that the service refuses for now: it is opened again after the delay that
    # came with the refusal, and the refusal is raised once that delay ends later than this.
    patience: timedelta = timedelta(minutes=2)
    # How long a stream that has not begun may go without any word of the service.
    start_patience: timedelta = timedelta(seconds=15)
    # The first pause; each is up to twice the one before, cut at random.
    first_pause: timedelta = timedelta(milliseconds=200)
    longest_pause: timedelta = timedelta(seconds=5)


class Patience:
    """Counts the tries of one stream since its last response."""

    def __init__(self, policy: ResumePolicy, *, may_renew: bool = False) -> None:
        """`may_renew`: there is a source of tokens, so that a refused one is replaced once."""
        self._policy = policy
        self._may_renew = may_renew
        self._renewed = False
        self._limit = policy.start_patience
        self._since = monotonic()
        self._failures = 0

    def responded(self) -> None:
        """Starts counting anew after a response."""
        self._limit = self._policy.patience
        self._since = monotonic()
        self._failures = 0
        self._renewed = False

    def pause_after(self, error: SessionError | TransportError) -> float:
        """Returns the seconds to wait before the next try. Raises `error` if there is none."""
        if self._may_renew and isinstance(error, Unauthenticated) and not self._renewed:
            self._renewed = True
            return 0.0
        how = resume_after(error)
        if how is Resume.NEVER:
            raise error
        advised = error.retry_after.total_seconds() if isinstance(error, SessionError) and error.retry_after else 0.0
        if advised:
            self._limit = self._policy.patience
        if self._ends_after(advised):
            raise error
        self._failures += 1
        if how is Resume.AT_ONCE and self._failures == 1:
            return 0.0
        longest = min(
            self._policy.first_pause.total_seconds() * 2.0 ** min(self._failures - 1, 16),
            self._policy.longest_pause.total_seconds(),
        )
        return advised + longest * random.uniform(0.5, 1.0)

    def _ends_after(self, advised: float) -> bool:
        """Returns True if a further try comes too late. `advised`: the service's delay in seconds; 0 for none."""
        if not advised and not self._failures:
            return False
        return monotonic() - self._since + advised > self._limit.total_seconds()
