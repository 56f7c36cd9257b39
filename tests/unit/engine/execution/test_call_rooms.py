"""A call of a tool of which only so many may run takes its place before it starts, or waits for it."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from tests.builders import a_call, a_session_key
from tests.processes import until
from tests.unit.engine.execution.test_tool_runner import SHORT, TIMEOUT, Depot, a_runner
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome
from turnkeeper.engine.execution.tool_runner import ToolRunner


def ready(tool_class: ToolClass = ToolClass.IRREVERSIBLE) -> Call:
    return a_call(a_session_key(), tool="fetch", arguments_json="{}", tool_class=tool_class, state=CallState.READY)


def a_runner_with(depot: Depot, *, room: int, meters: Meters | None = None) -> ToolRunner:
    return a_runner(depot, meters or Meters(), Traces(), room=room)[0]


def takes(runner: ToolRunner, call: Call, *, timeout: timedelta = TIMEOUT) -> bool:
    """Decides on a call, and starts it if it may start."""
    may_start = runner.rooms.take(call, timeout=timeout)
    if may_start:
        runner.start(call, timeout=timeout)
    runner.rooms.release_unused()
    return may_start


async def test_a_call_beyond_its_tools_number_waits_and_may_start_later() -> None:
    depot = Depot()
    runner = a_runner_with(depot, room=2)
    calls = [ready() for _ in range(3)]
    assert [takes(runner, call) for call in calls] == [True, True, False]
    assert runner.running == {call.id for call in calls}, "it counts as one that runs"
    assert not takes(runner, calls[2]), "it waits once, however often it is decided on"
    await until(lambda: depot.starts == 2)
    depot.released.set()
    await until(lambda: calls[2].id not in runner.running)
    assert takes(runner, calls[2])
    await until(lambda: all(task.done() for task in runner.tasks))
    assert depot.starts == 3
    assert {finished.result.outcome for finished in runner.take_results()} == {ToolOutcome.OK}


async def test_a_call_without_room_in_its_time_has_certainly_not_run() -> None:
    depot, meters = Depot(), Meters()
    runner = a_runner_with(depot, room=1, meters=meters)
    assert takes(runner, ready())
    late = ready()
    assert not takes(runner, late, timeout=SHORT)
    await asyncio.wait(runner.rooms.tasks)
    assert late.id in runner.running, "until its result is taken"
    (finished,) = runner.take_results()
    assert (finished.call_id, finished.result.outcome, depot.starts) == (late.id, ToolOutcome.FAILED, 1)
    assert "did not start; try again later" in finished.result.result_json
    assert late.id not in runner.running
    (labels,) = meters.points("turnkeeper.tool_calls")
    assert ("outcome", "FAILED") in labels
    await runner.stop()


async def test_a_place_that_no_call_starts_in_is_free_again() -> None:
    depot = Depot()
    runner, other = a_runner_with(depot, room=1), ready()
    refused = ready()
    assert runner.rooms.take(refused, timeout=TIMEOUT)
    assert runner.rooms.take(refused, timeout=TIMEOUT), "a decision that is made again finds the place"
    assert not takes(runner, other), "it was decided on while the place was taken"
    await until(lambda: other.id not in runner.running)
    assert takes(runner, other)
    await runner.stop()


async def test_the_end_of_a_run_gives_up_places_and_waits() -> None:
    depot = Depot()
    runner = a_runner_with(depot, room=1)
    unstarted, second = ready(), ready()
    assert runner.rooms.take(unstarted, timeout=TIMEOUT)
    assert not runner.rooms.take(second, timeout=TIMEOUT)
    await runner.stop()
    await asyncio.sleep(0)
    assert not runner.running
    assert takes(runner, second), "nothing of it is left"
    await runner.stop()


async def test_a_call_that_is_cancelled_before_its_tool_begins_leaves_its_place() -> None:
    depot = Depot()
    runner = a_runner_with(depot, room=1)
    assert takes(runner, ready())
    await runner.stop()
    assert depot.starts == 0
    assert takes(runner, ready())
    await runner.stop()


async def test_a_tool_keeps_its_room_until_it_has_ended_though_its_time_is_over() -> None:
    depot = Depot()
    runner = a_runner_with(depot, room=1)
    assert takes(runner, ready(), timeout=SHORT)
    await asyncio.wait(runner.tasks)
    (finished,) = runner.take_results()
    assert finished.result.outcome is ToolOutcome.TIMED_OUT
    later = ready()
    assert not takes(runner, later)
    depot.released.set()
    await until(lambda: later.id not in runner.running)
    assert takes(runner, later)
    await until(lambda: depot.starts == 2)
    await runner.stop()


async def test_a_call_that_is_no_longer_ready_leaves_its_place_and_its_wait() -> None:
    depot = Depot()
    runner = a_runner_with(depot, room=1)
    first, second, third = (ready() for _ in range(3))
    assert takes(runner, first)
    assert [takes(runner, call) for call in (second, third)] == [False, False]
    depot.released.set()
    await until(lambda: runner.rooms.placed == {second.id})
    assert runner.rooms.waiting == {third.id}, "it waits behind the one that has its place"
    runner.rooms.release_unused([replace(second, state=CallState.AWAITING)])
    await until(lambda: runner.rooms.placed == {third.id})
    runner.rooms.release_unused([replace(third, state=CallState.RETURNED)])
    assert (runner.rooms.tasks, runner.rooms.placed) == (set(), frozenset()), "nothing wakes the turn's run any more"
    assert takes(runner, ready())
    await runner.stop()
