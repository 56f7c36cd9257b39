"""Refuses a call only by what is certain.

Reads may lag behind what was acknowledged: a new primary does not know at once what a majority has. A call that is
refused because of what it read is made once more, with linearizable reads. Then it goes on, or the refusal is certain,
or the database cannot tell (ServiceUnavailable). Making a call again is harmless: all calls can be repeated.
"""

from collections.abc import Callable
from typing import Any

from turnkeeper.errors import (
    AlreadyExists,
    ArgumentsHashMismatch,
    CursorExpired,
    EtagMismatch,
    NotFound,
    SessionError,
    SessionIsSuspended,
    ToolCallNotPending,
    ToolOutcomeUnknown,
    TurnInProgress,
    TurnNotRetryable,
)
from turnkeeper.rpc.context import Context, Responses, Run
from turnkeeper.store.contract import Consistent

REST_ON_READING = (
    NotFound,
    AlreadyExists,
    SessionIsSuspended,
    TurnInProgress,
    EtagMismatch,
    TurnNotRetryable,
    ToolCallNotPending,
    ToolOutcomeUnknown,
    ArgumentsHashMismatch,
    CursorExpired,
)
"""Errors that newer data may make untrue. What has ended, expired or was decided stays so: no reading takes it back."""


class CertainRefusals:
    """Makes refused calls once more."""

    def __init__(self, store: Consistent) -> None:
        self._store = store

    def checked(self, method: Run) -> Run:
        """Returns the method of a unary call, whose refusals are certain."""

        async def run(request: Any, context: Context) -> Any:
            try:
                return await method(request, context)
            except SessionError as refusal:
                if not _rests_on_reading(refusal):
                    raise
            async with self._store.linearizable():
                return await method(request, context)

        return run

    async def begin(
        self, method: Callable[[Any, Context], Responses], request: Any, context: Context
    ) -> tuple[Responses, Any]:
        """Returns the responses of a stream, and the first of them, which is taken already; None if it has none.

        If the stream is refused before its first response, the refusal is certain.
        """
        responses = method(request, context)
        try:
            return responses, await _first(responses)
        except SessionError as refusal:
            if not _rests_on_reading(refusal):
                raise
        responses = method(request, context)
        async with self._store.linearizable():
            return responses, await _first(responses)


async def _first(responses: Responses) -> Any:
    """Returns the first response, or None if there is none. A response is never None."""
    async for response in responses:
        return response
    return None


def _rests_on_reading(refusal: SessionError) -> bool:
    return refusal.rests_on_reading or isinstance(refusal, REST_ON_READING)
