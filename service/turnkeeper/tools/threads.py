"""Threads for tools that are plain functions.

Each call has a thread of its own, so that a call that hangs delays no other. No tool gets more threads than are left
for all others, and no agent's tools more than twice as many: tools that hang fail, and the others go on. The threads
are daemons, so that a call that hangs does not keep the process from exiting.
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from turnkeeper.tools.contract import ToolError

MOST_THREADS = 512
"""Threads at most. A call that was cancelled or timed out holds its thread until its function ends."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ToolThreads:
    """The threads of the plain tools of one source."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        self.record: Callable[[int, str], None] = lambda _, __: None
        """Called from any thread when a tool has more threads or fewer: with the difference, and the tool's name."""
        self._most = most
        self._lock = threading.Lock()
        self._by_tool = Counter[str]()
        self._by_agent = Counter[str]()
        self._full: set[str] = set()
        """Tools whose calls were refused since they had no thread last: that is logged once."""

    async def run(self, function: Callable[[], T], *, tool: str, agent: str = "") -> T:
        """Runs a tool's function in a thread; returns what it returns and raises what it raises.

        `agent` is the one whose turn calls the tool. A cancellation returns at once, while the function runs on. Raises
        ToolError without starting the function if there is no thread for it.
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

        def work() -> None:
            value: T | None = None
            failed: BaseException | None = None
            try:
                value = context.run(function)
            except BaseException as error:  # noqa: BLE001 - the caller handles whatever a tool raises
                failed = error
            finally:
                self._give_back(tool, agent)
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
                loop.call_soon_threadsafe(settle, value, failed)

        self._take(tool, agent)
        try:
            threading.Thread(target=work, daemon=True, name="tool").start()
        except RuntimeError:  # the system's limit
            self._give_back(tool, agent)
            raise ToolError("The server has no thread left for this tool; try again later.") from None
        return await result

    def _take(self, tool: str, agent: str) -> None:
        """Takes a thread for a call. Raises ToolError if the tool, the agent or all tools have as many as they may."""
        with self._lock:
            free = self._most - self._by_tool.total()
            of_tool = self._by_tool[tool]
            if of_tool < free and self._by_agent[agent] < 2 * free:
                self._by_tool[tool] += 1
                self._by_agent[agent] += 1
                self.record(1, tool)
                return
            is_first = tool not in self._full
            self._full.add(tool)
        if is_first:
            logger.warning(
                "tool %s has %d threads, %d are free: its calls fail while so many do not end; other tools go on",
                *(tool, of_tool, free),
            )
        raise ToolError("Too many calls of this tool have not ended, so this one did not start; try again later.")

    def _give_back(self, tool: str, agent: str) -> None:
        with self._lock:
            for counts, name in ((self._by_tool, tool), (self._by_agent, agent)):
                counts[name] -= 1
                if not counts[name]:
                    del counts[name]
            if tool not in self._by_tool:
                self._full.discard(tool)
            self.record(-1, tool)
