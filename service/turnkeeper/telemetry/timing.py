"""Times work: two decorators and a context manager, for plain functions and for coroutines.

Each calls a function that records seconds, such as `metrics.delivery_lag`, also when the work fails.
"""

import asyncio
import inspect
import time
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

Clock = Callable[[], float]
"""Seconds that never go back."""


class ToolRecord(Protocol):
    """`Metrics.tool_finished`, or a function like it."""

    def __call__(self, source: str, *, tool_class: str, outcome: str, seconds: float) -> None: ...


class TimingContext:
    """Records the seconds spent inside a `with` or `async with`, once, also when the inside raises.

    `seconds` is the time so far, and the whole time after the end. `outcome` is OK, FAILED, TIMED_OUT or CANCELLED.
    """

    def __init__(self, record: Callable[[float], None], *, clock: Clock = time.perf_counter) -> None:
        self._record = record
        self._clock = clock
        self._began = 0.0
        self._took: float | None = None
        self.outcome = "OK"

    @property
    def seconds(self) -> float:
        return self._clock() - self._began if self._took is None else self._took

    def __enter__(self) -> Self:
        self._began, self._took, self.outcome = self._clock(), None, "OK"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._took = self._clock() - self._began
        self.outcome = _outcome(error)
        self._record(self._took)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def track_time(
    record: Callable[[float], None], *, clock: Clock = time.perf_counter
) -> Callable[[_Function], _Function]:
    """Records how long each call takes. Raises TypeError for generators, whose work is not in the call."""
    return _decorator(lambda: TimingContext(record, clock=clock))


def track_tool_time(
    record: ToolRecord, *, source: str, tool_class: str, clock: Clock = time.perf_counter
) -> Callable[[_Function], _Function]:
    """Records each call of a tool with its outcome: OK, FAILED, TIMED_OUT or CANCELLED.

    Raises TypeError for generators, whose work is not in the call.
    """

    def timing() -> TimingContext:
        def finished(seconds: float) -> None:
            record(source, tool_class=tool_class, outcome=context.outcome, seconds=seconds)

        context = TimingContext(finished, clock=clock)
        return context

    return _decorator(timing)


def _decorator(timing: Callable[[], TimingContext]) -> Callable[[_Function], _Function]:
    def decorate(function: _Function) -> _Function:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator; use TimingContext inside it")

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
                async with timing():
                    return await function(*args, **kwargs)

            return cast(_Function, timed_coroutine)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with timing():
                return function(*args, **kwargs)

        return cast(_Function, timed)

    return decorate


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "OK"
        case TimeoutError():
            return "TIMED_OUT"
        case asyncio.CancelledError():
            return "CANCELLED"
        case _:
            return "FAILED"
