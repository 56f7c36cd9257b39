"""Makes a call as clients do: one that is refused with RetryInfo comes again at that time."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc import aio

from tests.status_details import details_of

MOST_TRIES: Final = 20


async def responses_of(call: Any, request: bytes, *, clock: Callable[[], float]) -> list[tuple[float, bytes]]:
    """Returns each response of a stream with the clock at its arrival. Raises AioRpcError."""
    for _ in range(MOST_TRIES):
        try:
            return [(clock(), response) async for response in call(request)]
        except aio.AioRpcError as error:
            if (
                error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
                or (after := details_of(error).retry_after) is None
            ):
                raise
        await asyncio.sleep(after.total_seconds())
    return [(clock(), response) async for response in call(request)]
