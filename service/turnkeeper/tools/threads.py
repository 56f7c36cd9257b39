"""Threads for tools that are plain functions.

Each call has a thread of its own, so that a call that hangs delays no other. The threads are daemons, so that such a
call does not keep the process from exiting.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from turnkeeper.tools.contract import ToolError

MOST_THREADS = 512
"""Threads at most. A call that was cancelled or timed out holds its thread until its function ends."""

T = TypeVar("T")
_running = threading.BoundedSemaphore(MOST_THREADS)


async def in_thread(function: Callable[[], T]) -> T:
    """Runs the function in a thread; returns what it returns and raises what it raises.

    A cancellation returns at once, while the function runs on. Raises ToolError without starting the function if
    MOST_THREADS are in use, or if the system gives no thread.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if isinstance(error, StopIteration):
            result.set_exception(RuntimeError("the tool raised StopIteration"))  # no future can hold it
        elif error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # the function's own value, None included

    def run() -> None:
        value: T | None = None
        failed: BaseException | None = None
        try:
            value = context.run(function)
        except BaseException as error:  # noqa: BLE001 - the caller handles whatever a tool raises
            failed = error
        finally:
            _running.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
            loop.call_soon_threadsafe(settle, value, failed)

    _start(run)
    return await result


def _start(run: Callable[[], None]) -> None:
    """Starts a thread, which gives its place back itself. Raises ToolError if there is none."""
    if not _running.acquire(blocking=False):
        raise ToolError("The server has no thread left for this tool; try again later.")
    try:
        threading.Thread(target=run, daemon=True, name="tool").start()
    except RuntimeError:  # the system's limit
        _running.release()
        raise ToolError("The server has no thread left for this tool; try again later.") from None
