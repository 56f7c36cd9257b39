"""Polls for what sends no notification."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T | None]], *, seconds: float = 15) -> T:
    """Calls `look` until it returns a value, and returns that. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while (value := await look()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return value
