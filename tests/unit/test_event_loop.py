"""Large work leaves the event loop, and long work lets the rest of the loop go on."""

import asyncio
import threading
import time
from contextvars import ContextVar

import pytest

from turnkeeper.event_loop import SLICE, Slices, off_loop

NAME: ContextVar[str] = ContextVar("name")


async def test_large_work_runs_in_a_thread_with_its_callers_context() -> None:
    NAME.set("ada")
    where, name = await off_loop(lambda: (threading.current_thread(), NAME.get()))
    assert where is not threading.current_thread()
    assert name == "ada"


async def test_small_work_runs_at_once() -> None:
    assert await off_loop(threading.current_thread, large=False) is threading.current_thread()


async def test_what_large_work_raises_is_raised_to_its_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await off_loop(lambda: 1 / 0)


async def test_the_loop_goes_on_while_large_work_runs() -> None:
    running, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(running.set)
        assert released.wait(10)

    task = asyncio.create_task(off_loop(work))
    await running.wait()
    released.set()
    await task


async def test_a_cancelled_caller_does_not_wait_for_large_work() -> None:
    running, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(running.set)
        released.wait(10)

    task = asyncio.create_task(off_loop(work))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    released.set()


async def test_others_have_their_turn_between_two_slices() -> None:
    turns: list[str] = []

    async def others() -> None:
        turns.append("others")

    slices = Slices()
    task = asyncio.create_task(others())
    await slices.step()
    assert turns == [], "this slice is not over"
    until = time.perf_counter() + 2 * SLICE
    while time.perf_counter() < until:
        turns.append("work") if not turns else None
    await slices.step()
    assert turns == ["work", "others"]
    await task
