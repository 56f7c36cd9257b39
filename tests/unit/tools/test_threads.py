"""Threads for plain tools: one that hangs delays no other, and their number is limited."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from tests.processes import until
from turnkeeper.tools import threads
from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.threads import in_thread

MANY = 100
"""More than any pool of threads that is made for this machine."""


@contextlib.asynccontextmanager
async def hung(count: int) -> AsyncIterator[list[asyncio.Task[bool]]]:
    """Calls that hang until the block has ended; then their threads end too."""
    free, started = threading.Event(), list[bool]()

    def hang() -> bool:
        started.append(True)
        return free.wait()

    tasks = [asyncio.create_task(in_thread(hang)) for _ in range(count)]
    try:
        await until(lambda: len(started) == count)
        yield tasks
    finally:
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_that_hang_starve_no_other() -> None:
    async with asyncio.timeout(10), hung(MANY) as tasks:
        assert await in_thread(lambda: "quick") == "quick"
        assert not any(task.done() for task in tasks)


async def test_a_cancelled_call_returns_at_once_and_its_function_runs_on() -> None:
    ended = threading.Event()
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait()
        ended.set()

    task = asyncio.create_task(in_thread(hang))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    go_on.set()
    await until(ended.is_set)


@pytest.mark.parametrize("error", [StopIteration(3), RuntimeError("broken"), ToolError("refused")])
async def test_whatever_a_function_raises_is_an_error(error: Exception) -> None:
    def fail() -> None:
        raise error

    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    async with asyncio.timeout(10):
        with pytest.raises(expected) as raised:
            await in_thread(fail)
    assert isinstance(error, StopIteration) or raised.value is error


async def test_when_all_threads_are_taken_a_call_is_refused_and_nothing_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[bool] = []
    note: Callable[[], None] = lambda: started.append(True)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_running", threading.BoundedSemaphore(2))
        async with asyncio.timeout(10), hung(2):
            with pytest.raises(ToolError, match="no thread left"):
                await in_thread(note)
            assert not started
        await in_thread(note)
        await until(lambda: not any(thread.name == "tool" for thread in threading.enumerate()))
    assert started, "a place is free again when its function has ended"
