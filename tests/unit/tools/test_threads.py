"""Threads for plain tools: one that hangs delays no other, and their number is limited."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from tests.processes import until
from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.threads import ToolThreads

MANY = 100
"""More than any pool of threads that is made for this machine."""


@contextlib.asynccontextmanager
async def hung(
    threads: ToolThreads, count: int, *, tool: str = "hangs", agent: str = ""
) -> AsyncIterator[list[asyncio.Task[bool]]]:
    """Calls that hang until the block has ended; then their threads end too."""
    free, started = threading.Event(), list[bool]()

    def hang() -> bool:
        started.append(True)
        return free.wait()

    tasks = [asyncio.create_task(threads.run(hang, tool=tool, agent=agent)) for _ in range(count)]
    try:
        await until(lambda: len(started) == count)
        yield tasks
    finally:
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_that_hang_starve_no_other() -> None:
    threads = ToolThreads()
    async with asyncio.timeout(10), hung(threads, MANY) as tasks:
        assert await threads.run(lambda: "quick", tool="hangs") == "quick"
        assert not any(task.done() for task in tasks)


async def test_a_cancelled_call_returns_at_once_and_its_function_runs_on() -> None:
    ended = threading.Event()
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait()
        ended.set()

    task = asyncio.create_task(ToolThreads().run(hang, tool="hangs"))
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
            await ToolThreads().run(fail, tool="fails")
    assert isinstance(error, StopIteration) or raised.value is error


async def test_a_tool_that_hangs_fails_alone_and_is_free_again_when_its_calls_have_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads = ToolThreads(8)
    amounts: list[tuple[int, str]] = []
    threads.record = lambda change, tool: amounts.append((change, tool))
    started: list[bool] = []
    note: Callable[[], None] = lambda: started.append(True)  # noqa: E731
    async with asyncio.timeout(10), hung(threads, 4):
        for _ in range(3):
            with pytest.raises(ToolError, match="did not start; try again later"):
                await threads.run(note, tool="hangs")
        assert not started
        assert await threads.run(lambda: "here", tool="another") == "here"
        assert sum(change for change, tool in amounts if tool == "hangs") == 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "tool hangs has 4 threads, 4 are free: its calls fail while so many do not end; other tools go on"
    await until(lambda: not sum(change for change, _ in amounts))
    await threads.run(note, tool="hangs")
    assert started


async def test_calls_that_were_cancelled_hold_their_threads() -> None:
    threads = ToolThreads(8)
    async with asyncio.timeout(10), hung(threads, 4) as tasks:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(ToolError):
            await threads.run(lambda: None, tool="hangs")


async def test_however_many_tools_of_an_agent_hang_the_tools_of_other_agents_go_on() -> None:
    threads = ToolThreads(32)
    async with asyncio.timeout(10), contextlib.AsyncExitStack() as stack:
        for number in range(8):
            tool = f"hangs{number}"
            with contextlib.suppress(ToolError):
                for _ in range(32):
                    await stack.enter_async_context(one_hung(threads, tool=tool, agent="clerk"))
        assert await threads.run(lambda: "here", tool="quick", agent="another") == "here"
        with pytest.raises(ToolError):
            await threads.run(lambda: "here", tool="quick", agent="clerk")


@contextlib.asynccontextmanager
async def one_hung(threads: ToolThreads, *, tool: str, agent: str) -> AsyncIterator[None]:
    """A call that hangs until the block has ended. Raises ToolError if it did not start."""
    free, started = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        free.wait()

    task = asyncio.create_task(threads.run(hang, tool=tool, agent=agent))
    try:
        await until(lambda: started.is_set() or task.done())
        if task.done():
            await task
        yield
    finally:
        free.set()
        await asyncio.gather(task, return_exceptions=True)
