"""Calls wait connection by connection: a burst keeps no other connection out, and no iteration begins too many."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from turnkeeper.rpc.accepting import LEAST, PER_SECOND, FairLines


class Clock:
    """Seconds of CPU that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Beginner:
    """Takes calls as gRPC's loop does."""

    def __init__(self, clock: Clock) -> None:
        self.lines = FairLines(clock=clock)
        self.begun: list[str] = []

    async def run(self) -> None:
        while True:
            self.begun.append(await self.lines.take())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def beginner(clock: Clock) -> AsyncIterator[Beginner]:
    beginner = Beginner(clock)
    task = asyncio.create_task(beginner.run())
    yield beginner
    task.cancel()
    await asyncio.wait([task])


async def test_a_call_of_another_connection_passes_by_a_burst(beginner: Beginner) -> None:
    for number in range(5000):
        beginner.lines.put(f"attacker{number % 50}", "attack")
    beginner.lines.put("reader", "read")
    while "read" not in beginner.begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert len(beginner.begun) <= 51 + LEAST


async def test_calls_of_one_connection_are_begun_in_the_order_in_which_they_came(beginner: Beginner) -> None:
    calls = [str(number) for number in range(3 * LEAST)]
    for call in calls:
        beginner.lines.put("one", call)
    while len(beginner.begun) < len(calls):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert beginner.begun == calls


async def test_an_iteration_begins_few_calls_and_more_the_longer_the_one_before_took(
    beginner: Beginner, clock: Clock
) -> None:
    for _ in range(5000):
        beginner.lines.put("one", "call")
    begun = [await begun_in_an_iteration(beginner) for _ in range(6)]
    assert max(begun) == LEAST
    clock.now += 0.1
    begun = [await begun_in_an_iteration(beginner) for _ in range(6)]
    assert max(begun) == LEAST + 0.1 * PER_SECOND


async def test_a_long_iteration_without_calls_lets_no_burst_through(beginner: Beginner, clock: Clock) -> None:
    beginner.lines.put("one", "call")
    for _ in range(4):
        await asyncio.sleep(0)
        clock.now += 1
    for _ in range(5000):
        beginner.lines.put("one", "call")
    assert max([await begun_in_an_iteration(beginner) for _ in range(2)]) == LEAST


async def test_calls_that_cost_time_are_begun_at_their_rate(clock: Clock) -> None:
    """Their handlers run in the iteration after `take`, beside other work: an iteration's share may not get lost."""
    lines, begun = FairLines(clock=clock), 0

    async def handle() -> None:
        clock.now += 0.0002

    async def take() -> None:
        nonlocal begun
        while True:
            await lines.take()
            begun += 1
            handlers.add(asyncio.create_task(handle()))

    handlers: set[asyncio.Task[None]] = set()
    taking = asyncio.create_task(take())
    for _ in range(5000):
        lines.put("one", "call")
    for _ in range(50):
        await asyncio.sleep(0)
        clock.now += 0.01
    taking.cancel()
    await asyncio.wait([taking, *handlers])
    assert begun >= 48 * 0.01 * PER_SECOND + 24 * LEAST


async def test_once_it_has_ended_what_waited_is_returned_and_taken_no_more() -> None:
    lines = FairLines()
    lines.put("one", "first")
    lines.put("other", "second")
    assert await lines.take() == "first"
    assert lines.end(ConnectionError()) == ["second"]
    with pytest.raises(ConnectionError):
        await lines.take()


async def begun_in_an_iteration(beginner: Beginner) -> int:
    before = len(beginner.begun)
    await asyncio.sleep(0)
    return len(beginner.begun) - before
