"""Keeps the event loop free for everything else: large work goes to a thread, long work makes pauses.

The size of work is a caller's, a model's or a tool's choice. None of them may stop the turns and the leases of others.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

SLICE: Final = 0.01
"""Seconds of work after which the rest of the loop has its turn."""
_THREADS: Final = 2
"""Threads for large work: more would only take the interpreter from the loop."""

T = TypeVar("T")
_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="large work")


async def off_loop(work: Callable[[], T], *, large: bool = True) -> T:
    """Returns what `work` returns, and raises what it raises. It runs in a thread if it is `large`, otherwise at once.

    If the caller is cancelled, the work goes on and its result is dropped: it must have no effect.
    """
    if not large:
        return work()
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, work))


class Slices:
    """Long work in the loop, step by step: between two steps the rest of the loop has its turn if a SLICE is over."""

    def __init__(self) -> None:
        """Begins the first slice now."""
        self._began = time.perf_counter()

    async def step(self) -> None:
        """Lets the rest of the loop go on if this slice is over. The caller calls it between two steps."""
        if time.perf_counter() - self._began < SLICE:
            return
        await asyncio.sleep(0)
        self._began = time.perf_counter()
