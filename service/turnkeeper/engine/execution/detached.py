"""Stops tasks that run the code of a model or a tool, in bounded time: such code may swallow its cancellation."""

import asyncio
from typing import Any

CANCEL_TIME = 2.0
"""Seconds that a cancelled tool or model call has to end. Less than the worker's CUT_TIME, so that its turn is still
handed over.
"""


async def stop(task: asyncio.Task[Any], detached: set[asyncio.Task[Any]]) -> bool:
    """Cancels the task, and waits for its end up to CANCEL_TIME. Returns False if it goes on in `detached`."""
    task.cancel()
    try:
        await asyncio.wait([task], timeout=CANCEL_TIME)
    finally:
        detach(task, detached)
    return task.done()


def detach(task: asyncio.Task[Any], detached: set[asyncio.Task[Any]]) -> None:
    """Keeps a reference to a task that nothing waits for, until its end. Its result and its error go nowhere."""

    def ended(task: asyncio.Task[Any]) -> None:
        detached.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: asyncio logs nothing

    if task.done():
        ended(task)
        return
    detached.add(task)
    task.add_done_callback(ended)
