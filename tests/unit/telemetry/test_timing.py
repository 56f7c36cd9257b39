"""Work is timed once, whether it is a function or a coroutine, and whether or not it succeeds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.unit.telemetry.calls import Meters
from turnkeeper.telemetry.timing import TimingContext, track_time, track_tool_time


def clock(*instants: float) -> Callable[[], float]:
    return iter(instants).__next__


def test_a_function_is_timed_and_keeps_its_name_and_result() -> None:
    seconds: list[float] = []

    @track_time(seconds.append, clock=clock(10, 12.5, 20, 21))
    def double(number: int, *, plus: int = 0) -> int:
        """Twice the number."""
        return 2 * number + plus

    assert double(4, plus=1) == 9
    assert double(1) == 2
    assert seconds == [2.5, 1]
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")


async def test_a_coroutine_is_timed_to_its_end() -> None:
    seconds: list[float] = []

    @track_time(seconds.append, clock=clock(1, 4))
    async def answer() -> int:
        await asyncio.sleep(0)
        assert not seconds
        return 42

    assert asyncio.iscoroutinefunction(answer)
    assert await answer() == 42
    assert seconds == [3]


def test_a_function_that_fails_is_timed_too() -> None:
    seconds: list[float] = []

    @track_time(seconds.append, clock=clock(1, 2))
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert seconds == [1]


def test_a_generator_is_refused_because_its_work_is_not_in_the_call() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for generator in (numbers, later):
        with pytest.raises(TypeError, match="TimingContext"):
            track_time(print)(generator)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "OK"), (ValueError("canary"), "FAILED"), (TimeoutError(), "TIMED_OUT")],
)
def test_a_tool_is_counted_with_its_outcome(error: Exception | None, outcome: str) -> None:
    meters = Meters()

    @track_tool_time(meters.metrics.tool_finished, source="samples", tool_class="READ_ONLY", clock=clock(0, 2))
    def tool() -> str:
        if error:
            raise error
        return "done"

    if error:
        with pytest.raises(type(error)):
            tool()
    else:
        assert tool() == "done"
    labels = (("class", "READ_ONLY"), ("outcome", outcome), ("source", "samples"))
    assert meters.points("turnkeeper.tool_calls") == {labels: 1}
    assert meters.points("turnkeeper.tool.duration") == {(("source", "samples"),): 2}


async def test_a_cancelled_tool_is_counted_and_stays_cancelled() -> None:
    meters = Meters()

    @track_tool_time(meters.metrics.tool_finished, source="samples", tool_class="READ_ONLY")
    async def tool() -> None:
        await asyncio.sleep(60)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(tool())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    (labels,) = meters.points("turnkeeper.tool_calls")
    assert ("outcome", "CANCELLED") in labels


async def test_calls_that_overlap_are_timed_apart() -> None:
    seconds: list[float] = []
    now = 0.0

    @track_time(seconds.append, clock=lambda: now)
    async def wait(gate: asyncio.Event) -> None:
        await gate.wait()

    first, second = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        one = group.create_task(wait(first))
        await asyncio.sleep(0)
        now = 1.0
        group.create_task(wait(second))
        await asyncio.sleep(0)
        now = 5.0
        first.set()
        await one
        now = 9.0
        second.set()
    assert seconds == [5, 8]


def test_a_context_tells_the_time_while_it_runs_and_after() -> None:
    seconds: list[float] = []
    with TimingContext(seconds.append, clock=clock(10, 11, 14)) as timing:
        assert timing.seconds == 1
    assert timing.seconds == 4
    assert seconds == [4]
    assert timing.outcome == "OK"


async def test_a_context_times_a_coroutine_that_fails() -> None:
    seconds: list[float] = []
    timing = TimingContext(seconds.append, clock=clock(1, 3))
    with pytest.raises(ValueError, match="no"):
        async with timing:
            raise ValueError("no")
    assert seconds == [2]
    assert timing.outcome == "FAILED"
