"""Ctrl-C while a turn is shown: the program goes on, and decides what it means."""

import asyncio
import contextlib
import signal
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import FrameType
from typing import Any, Self

from turnkeeper_client.pb.v1.event_pb2 import Event


class Interruption:
    """Counts what Ctrl-C asks for, as a context manager in the main thread; the second one raises KeyboardInterrupt."""

    def __init__(self, *, hides_typing: bool = True) -> None:
        """`hides_typing`: what is typed is not echoed, and waits for the next line that is read."""
        self.count = 0
        self._hides_typing = hides_typing
        self._pressed = asyncio.Event()
        self._handler: Any = None
        self._terminal: list[Any] | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._handler = signal.signal(signal.SIGINT, self._press)
        if self._hides_typing:
            self._terminal = termios.tcgetattr(sys.stdin)
            silent = termios.tcgetattr(sys.stdin)
            silent[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if self._terminal is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    async def between(
        self, events: AsyncGenerator[Event, None], *, longest: Callable[[], float | None]
    ) -> AsyncGenerator[Event | None, None]:
        """Yields the events; None at the first Ctrl-C, and where none comes for `longest` seconds."""
        following: asyncio.Task[Event | None] | None = None
        try:
            while True:
                following = following or asyncio.create_task(_next(events))
                if await self._is_first(following, timeout=longest()):
                    event, following = await following, None
                    if event is None:
                        return
                    yield event
                else:
                    yield None
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await events.aclose()

    async def is_done(self, work: Coroutine[Any, Any, object]) -> bool:
        """Does the work. Returns False if Ctrl-C ended it."""
        task = asyncio.create_task(work)
        try:
            if await self._is_first(task):
                await task
                return True
            return False
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self._loop.call_soon_threadsafe(self._pressed.set)

    async def _is_first(self, task: asyncio.Task[Any], *, timeout: float | None = None) -> bool:
        """Waits for the task, for Ctrl-C or for so many seconds. Returns True if the task has ended first."""
        pressed = asyncio.create_task(self._pressed.wait())
        try:
            await asyncio.wait({task, pressed}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pressed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pressed
        if not self._pressed.is_set():
            return task.done()
        self._pressed.clear()
        if self.count > 1:
            raise KeyboardInterrupt
        return False


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
