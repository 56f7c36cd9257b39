"""What a person reads while the service is away and a stream tries again by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

from turnkeeper.terminal.console import Output
from turnkeeper_client import EventStream

LEAST: Final = timedelta(seconds=1)
"""A shorter absence is not worth a line."""


def absence(time: timedelta) -> str:
    """Returns the line about a service that has been away for so long; empty for less than LEAST."""
    return f"no answer from the service for {time.total_seconds():.0f} s; trying again" if time >= LEAST else ""


@asynccontextmanager
async def absence_shown(stream: EventStream, output: Output) -> AsyncIterator[None]:
    """Prints a line when the service of a stream is away, and one when it is back, while the block runs."""

    async def look() -> None:
        before = timedelta()
        while True:
            await asyncio.sleep(LEAST.total_seconds())
            if (time := stream.away_for) >= LEAST > before:
                output.show((absence(time), "yellow"))
            elif before >= LEAST > time:
                output.show((f"the service answers again after {before.total_seconds():.0f} s", "yellow"))
            before = time

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
