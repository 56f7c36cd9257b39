"""Keeps the event loop free for everything else: large work goes to a thread, long work makes pauses.

The size of work is a caller's, a model's or a tool's choice. None of them may stop the turns and the leases of others.
`EventLoop` takes gRPC's events as fast as they come.
"""

import asyncio
import contextlib
import contextvars
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import uvloop

SLICE: Final = 0.01
"""Seconds of work after which the rest of the loop has its turn."""
_THREADS: Final = 2
"""Threads for large work: more would only take the interpreter from the loop."""

_MOST_EVENTS: Final = 4096
"""Bytes that are read at once, at most, of those that gRPC writes, one for each event."""
_POLLER: Final = "_poll_wrapper"
"""What the name of gRPC's polling thread contains: the function that it runs."""

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


class EventLoop(uvloop.Loop):
    """A loop for servers of gRPC.

    For each event, gRPC's core writes a byte to a socket pair. grpc.aio reads one byte in each iteration of the loop,
    and handles the events that there are. Some 280 bytes fill the pair. From then on one event comes with each
    iteration, and a busy server hardly ends any call. So all bytes but one are read here.

    The thread that writes those bytes does not interrupt the loop's thread where both run on one core.
    """

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """Calls `callback` while there is something to read."""
        owner = getattr(getattr(callback, "func", callback), "__self__", None)
        if type(owner).__name__ == "PollerCompletionQueue" and isinstance(fd, socket.socket):
            callback = _all_at_once(fd, callback)
            _let_poller_wait()
        super().add_reader(fd, callback, *args)


def _all_at_once(pair: socket.socket, callback: Callable[..., object]) -> Callable[..., object]:
    """Returns a callback that leaves one byte to `callback`. An event is in the queue before its byte is written."""

    def read(*args: Any) -> None:
        waiting = len(pair.recv(_MOST_EVENTS, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        if waiting > 1:
            pair.recv(waiting - 1)
        callback(*args)

    return read


def _let_poller_wait() -> None:
    """Lets gRPC's polling thread wait for a pause of the loop. It has nothing to do that the loop need not do, too.

    Otherwise the system stops the loop for each response that is sent, only to tell it afterwards. Linux alone has the
    policy, for which no privilege is needed; where a sandbox forbids it, all goes on as before.
    """
    if sys.platform == "linux":
        for thread in threading.enumerate():
            if _POLLER in thread.name and thread.native_id is not None:
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))
