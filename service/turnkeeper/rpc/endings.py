"""How a call ends with an error: its status, message and trailing metadata."""

import asyncio
import contextlib
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeAlias

import grpc

from turnkeeper.codes import Code
from turnkeeper.errors import Overloaded, QuotaExceeded, RateLimitExceeded, SessionError
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.status import DETAILS_KEY, PUSHBACK_KEY, details_bytes, pushback, shown_message

PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
"""The metadata by which gRPC's own retries tell how often they have tried the call."""
ABORT_TIME = 2.0
"""Seconds that ending a call with a status may take: the client may not read it."""
EXPIRY = 0.1
"""Seconds before its deadline from which on an unanswered call counts as late: the caller's clock started earlier."""
STATUS = {code.value[0]: code for code in grpc.StatusCode}
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]


def is_first_attempt(context: Context) -> bool:
    """Returns False if gRPC's own retries have tried the call before."""
    return PREVIOUS_ATTEMPTS not in dict(context.invocation_metadata() or ())


def ending(error: SessionError, *, on_stream: bool, is_first: bool) -> tuple[grpc.StatusCode, str, Trailers]:
    """Returns the status, the message and the trailing metadata of an error."""
    status = error.to_status()
    trailers: Trailers = ((DETAILS_KEY, details_bytes(status, on_stream=on_stream)),)
    if after := pushback(status, is_first=is_first):
        trailers = (*trailers, (PUSHBACK_KEY, after))
    return STATUS[int(status.family)], shown_message(status), trailers


def shown_ending(error: SessionError, *, on_stream: bool, is_first: bool) -> tuple[grpc.StatusCode, str, Trailers]:
    """Returns the same as `ending`. That of a refusal by a limit of its caller is written once for many calls."""
    if isinstance(error, RateLimitExceeded | QuotaExceeded) and "scope" in error.metadata:
        limit, scope = error.metadata["limit"], error.metadata["scope"]
        return _limited_ending(error.code, limit, scope, error.retry_after, on_stream)
    return ending(error, on_stream=on_stream, is_first=is_first)


@lru_cache(maxsize=2048)
def _limited_ending(
    code: Code, limit: str, scope: str, retry_after: timedelta | None, on_stream: bool
) -> tuple[grpc.StatusCode, str, Trailers]:
    kind = QuotaExceeded if code is Code.QUOTA_EXCEEDED else RateLimitExceeded
    error = kind(metadata={"limit": limit, "scope": scope}, retry_after=retry_after)
    return ending(error, on_stream=on_stream, is_first=True)


@lru_cache(maxsize=4096)
def refusal_ending(
    limit: str, retry_after: timedelta, on_stream: bool, is_first: bool
) -> tuple[grpc.StatusCode, str, Trailers]:
    """Returns the same for a refusal by a limit. Its delays are few: the gate rounds them."""
    refusal = Overloaded(metadata={"limit": limit}, retry_after=retry_after)
    return ending(refusal, on_stream=on_stream, is_first=is_first)


def status_of(context: Context) -> grpc.StatusCode:
    """Returns the status with which the call was ended."""
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else STATUS.get(int(code or 0), grpc.StatusCode.UNKNOWN)


async def abort(context: Context, error: SessionError, *, on_stream: bool) -> None:
    """Ends the call with the error's status. Takes at most ABORT_TIME, because the client may not read it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ABORT_TIME):
            await context.abort(*shown_ending(error, on_stream=on_stream, is_first=is_first_attempt(context)))


def unanswered(context: Context) -> str:
    """Returns the status of a call that its caller gave up: by its deadline, or at its own will."""
    left: float | None = context.time_remaining()
    return "CANCELLED" if left is None or left > EXPIRY else "DEADLINE_EXCEEDED"
