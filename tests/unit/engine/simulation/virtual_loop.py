"""An event loop in virtual time: a test moves its clock, and runs it until nothing is left to do at that time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from datetime import datetime, timedelta
from typing import TypeVar, TypeVarTuple

import pytest

from tests.builders import NOON

Ts = TypeVarTuple("Ts")
R = TypeVar("R")
MOST_ROUNDS = 10_000
"""Of callbacks, each caused by the one before, at one time."""
_START = NOON - timedelta(days=1)


class Clock:
    """The time everywhere: of the database, of people, and of each process's monotonic clock."""

    def __init__(self) -> None:
        self.now = NOON

    def time(self) -> datetime:
        """Returns the time of day."""
        return self.now

    def monotonic(self) -> float:
        """Returns the seconds of the monotonic clock."""
        return (self.now - _START).total_seconds()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop by the clock of the test. It never waits: what is not due stays where it is."""

    def __init__(self, clock: Clock) -> None:
        self._test_clock = clock
        self._callbacks = 0
        """How many callbacks were ever scheduled."""
        super().__init__()

    def time(self) -> float:
        """Returns the seconds of the monotonic clock."""
        return self._test_clock.monotonic()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Counts what is scheduled."""
        self._callbacks += 1
        return super().call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], R], *args: *Ts) -> asyncio.Future[R]:
        """Does the work of a thread at once."""
        result: asyncio.Future[R] = self.create_future()
        try:
            result.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - raised where the work is awaited
            result.set_exception(error)
        return result

    def settle(self) -> None:
        """Runs until nothing is left to do at this time. The system's clocks have the time of the test's meanwhile."""
        clock = self._test_clock.monotonic
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", clock)
            patch.setattr(time, "clock_gettime", lambda _: clock())
            for _ in range(MOST_ROUNDS):
                before = self._callbacks
                super().call_soon(self.stop)
                self.run_forever()
                if before == self._callbacks:
                    return
            raise AssertionError("the tasks do not come to rest")
