"""An event loop for tools that are coroutine functions: one for the process, in a thread of its own.

What such a tool does to its event loop happens to this one and not to the server's. It may block the loop, stop it,
cancel all of its tasks, or raise SystemExit in a task or a callback: the loop goes on after each of these.
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.failure import failure_of

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None

logger = logging.getLogger(__name__)


async def in_tool_loop(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs the coroutine function in the tools' event loop; returns what it returns and raises what it raises.

    A cancellation cancels the coroutine, and returns when that has ended. Raises ToolError without starting the
    function if the system gives no thread for the loop.
    """
    tools = _started_loop()
    visit = _Visit(function)
    tools.call_soon_threadsafe(visit.begin, context=contextvars.copy_context())
    try:
        return await asyncio.shield(visit.ended)
    except asyncio.CancelledError:
        if not visit.ended.done():
            tools.call_soon_threadsafe(visit.cancel)
            await asyncio.wait([visit.ended])
        raise


class _Visit(Generic[T]):
    """One coroutine in the tools' event loop, for a caller in another loop."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._function = function
        self._caller = asyncio.get_running_loop()
        self.ended: asyncio.Future[T] = self._caller.create_future()
        """The coroutine's end, in the caller's loop."""
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """Starts the coroutine. Called in the tools' loop."""
        self._task = asyncio.get_running_loop().create_task(self._function())
        self._task.add_done_callback(self._report)

    def cancel(self) -> None:
        """Cancels the coroutine. Called in the tools' loop, after `begin`."""
        if self._task is not None:
            self._task.cancel()

    def _report(self, task: asyncio.Task[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            self._caller.call_soon_threadsafe(self._settle, task)

    def _settle(self, task: asyncio.Task[T]) -> None:
        if self.ended.done():
            return
        if task.cancelled():
            self.ended.cancel()
        elif (error := task.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())


def _started_loop() -> asyncio.AbstractEventLoop:
    """Returns the tools' event loop. The first call starts its thread."""
    global _loop  # noqa: PLW0603 - one for the process: tools share their connections
    with _lock:
        if _loop is None or _loop.is_closed():
            loop = asyncio.new_event_loop()
            try:
                threading.Thread(target=_run, args=(loop,), daemon=True, name="tools").start()
            except RuntimeError:  # the system's limit
                loop.close()
                raise ToolError("The server has no thread left for this tool; try again later.") from None
            _loop = loop
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Runs the loop until the process ends, whatever a tool raises in it."""
    asyncio.set_event_loop(loop)
    while not loop.is_closed():
        try:
            loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - a tool's SystemExit ends its task, and nothing else
            failure = failure_of(error)
            logger.warning(
                "a task or a callback of a tool raised %s (%s): it has ended, and the tools' event loop goes on",
                *(failure.kind, " > ".join(failure.frames) or "no frames"),
            )
