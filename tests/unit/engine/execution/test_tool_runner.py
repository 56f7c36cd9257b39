"""A turn's tools: their telemetry names their source, and calls that must not run twice outlive the run."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from opentelemetry.trace import StatusCode

from tests.builders import a_call, a_session_key
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome, ToolSpec
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.engine.eventlog.lease import LeaseLost
from turnkeeper.engine.execution.tool_runner import FIRST_PAUSE, LONGEST_PAUSE, ToolRunner, retry_pause
from turnkeeper.tools.catalogue import Catalogue, CatalogueEntry
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Finished, Toolbox

TIMEOUT = timedelta(seconds=5)
SHORT = timedelta(seconds=0.01)


class Depot:
    """A source of one tool that returns once it is released. `stubborn`: also if it is cancelled before."""

    listing = 1

    def __init__(self, *, stubborn: bool = False) -> None:
        self.released = asyncio.Event()
        self.starts = 0
        self.cancels = 0
        self._stubborn = stubborn

    def specs(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(
                name="fetch", description="Fetches.", schema_json="{}", tool_class=ToolClass.READ_ONLY, source="depot"
            )
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        self.starts += 1
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancels += 1
                if not self._stubborn:
                    raise
        return f'"{name}"'


def started(tool_class: ToolClass) -> Call:
    return a_call(
        a_session_key(), tool="fetch", arguments_json="{}", tool_class=tool_class, state=CallState.STARTED, started=True
    )


class Held:
    """The lease of a test: it is held, unless the test says otherwise."""

    def __init__(self) -> None:
        self.is_lost = False
        self.looks = 0

    async def hold(self) -> None:
        self.looks += 1
        if self.is_lost:
            raise LeaseLost


def a_runner(
    depot: Depot, meters: Meters, traces: Traces, *, room: int | None = None, lease: Held | None = None
) -> tuple[ToolRunner, set[asyncio.Task[Finished]]]:
    detached: set[asyncio.Task[Finished]] = set()
    runner = ToolRunner(
        Toolbox([depot], catalogue=Catalogue(entries=[CatalogueEntry(tool="*", concurrency=room)])),
        caller=ToolCaller("clerk", "ada"),
        spans=traces.spans,
        metrics=meters.metrics,
        detached=detached,
        hold=(lease or Held()).hold,
    )
    return runner, detached


async def test_metrics_and_spans_name_the_tools_own_source() -> None:
    depot, meters, traces = Depot(), Meters(), Traces()
    runner, _ = a_runner(depot, meters, traces)
    depot.released.set()
    runner.start(started(ToolClass.READ_ONLY), timeout=TIMEOUT)
    await asyncio.wait(runner.tasks)
    (finished,) = runner.take_results()
    assert finished.result.outcome is ToolOutcome.OK
    assert meters.points("turnkeeper.tool_calls") == {
        (("class", "READ_ONLY"), ("outcome", "OK"), ("source", "depot")): 1
    }
    (span,) = traces.exporter.get_finished_spans()
    assert (span.attributes or {})["turnkeeper.tool.source"] == "depot"


async def test_a_tool_that_is_cancelled_is_measured_like_any_other() -> None:
    depot, meters, traces = Depot(), Meters(), Traces()
    runner, _ = a_runner(depot, meters, traces)
    runner.start(started(ToolClass.READ_ONLY), timeout=TIMEOUT)
    await asyncio.sleep(0)
    await runner.stop()
    assert meters.points("turnkeeper.tool_calls") == {
        (("class", "READ_ONLY"), ("outcome", "CANCELLED"), ("source", "depot")): 1
    }
    (labels,) = meters.points("gen_ai.execute_tool.duration")
    assert (dict(labels)["gen_ai.tool.name"], dict(labels)["error.type"]) == ("fetch", "CANCELLED")
    (span,) = traces.exporter.get_finished_spans()
    assert (span.attributes or {})["turnkeeper.tool.outcome"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("tool_class", list(ToolClass))
async def test_only_a_call_that_must_not_run_twice_is_an_orphan(tool_class: ToolClass) -> None:
    depot = Depot()
    runner, detached = a_runner(depot, Meters(), Traces())
    call = started(tool_class)
    runner.start(call, timeout=TIMEOUT)
    await asyncio.sleep(0)
    (tool,) = runner.tasks
    orphans = runner.take_orphans()
    assert [orphan.call for orphan in orphans] == ([] if tool_class.may_start_again else [call])
    await runner.stop()
    assert tool.cancelled() is tool_class.may_start_again
    assert not detached
    depot.released.set()
    for orphan in orphans:
        assert (await orphan.tool).result.outcome is ToolOutcome.OK


async def test_a_result_is_an_orphan_until_it_is_stored() -> None:
    depot = Depot()
    runner, _ = a_runner(depot, Meters(), Traces())
    depot.released.set()
    call = started(ToolClass.IRREVERSIBLE)
    runner.start(call, timeout=TIMEOUT)
    await asyncio.wait(runner.tasks)
    runner.take_results()
    assert [orphan.call for orphan in runner.take_orphans()] == [call]
    runner.results_stored()
    assert runner.take_orphans() == ()


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("tool_class", list(ToolClass))
async def test_a_timeout_does_not_depend_on_the_tool(tool_class: ToolClass, stubborn: bool) -> None:
    depot = Depot(stubborn=stubborn)
    runner, detached = a_runner(depot, Meters(), Traces())
    call = started(tool_class)
    runner.start(call, timeout=SHORT)
    await asyncio.wait(runner.tasks, timeout=TIMEOUT.total_seconds())
    (finished,) = runner.take_results()
    assert finished.result.outcome is ToolOutcome.TIMED_OUT
    assert finished.result.result_json == '{"error": "The tool did not finish in 0.01 s; it may have taken effect."}'
    overdue = runner.results_stored()
    assert [orphan.call for orphan in overdue] == ([] if tool_class.may_start_again else [call])
    await runner.stop()
    assert depot.cancels == (1 if tool_class.may_start_again else 0), "what may not run twice runs on to its result"
    depot.released.set()
    for orphan in overdue:
        assert (await orphan.tool).result.result_json == '"fetch"'
    await asyncio.wait({*detached, asyncio.create_task(asyncio.sleep(0))})
    await asyncio.sleep(0)
    assert (depot.starts, detached) == (1, set())


async def test_a_call_that_timed_out_is_an_orphan_until_its_question_is_stored() -> None:
    depot = Depot()
    runner, _ = a_runner(depot, Meters(), Traces())
    call = started(ToolClass.IRREVERSIBLE)
    runner.start(call, timeout=SHORT)
    await asyncio.wait(runner.tasks)
    (before,) = runner.take_orphans()
    assert before.call == call
    assert not before.tool.done()
    depot.released.set()
    assert (await before.tool).result.outcome is ToolOutcome.OK


async def test_a_call_that_timed_out_and_then_ended_keeps_both_facts() -> None:
    depot = Depot()
    runner, _ = a_runner(depot, Meters(), Traces())
    runner.start(started(ToolClass.IRREVERSIBLE), timeout=SHORT)
    await asyncio.wait(runner.tasks)
    (finished,) = runner.take_results()
    depot.released.set()
    (orphan,) = runner.take_orphans()
    await orphan.tool
    assert finished.result.outcome is ToolOutcome.TIMED_OUT
    assert [late.tool for late in runner.results_stored()] == [orphan.tool]


async def test_a_cancelled_tool_that_goes_on_is_detached() -> None:
    depot = Depot(stubborn=True)
    runner, detached = a_runner(depot, Meters(), Traces())
    runner.start(started(ToolClass.READ_ONLY), timeout=TIMEOUT)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await runner.stop()
    assert runner.take_results() == []
    (tool,) = detached
    depot.released.set()
    await tool
    assert depot.cancels == 1


async def test_a_tool_that_ends_while_it_is_cancelled_has_its_result() -> None:
    depot = Depot(stubborn=True)
    runner, _ = a_runner(depot, Meters(), Traces())
    runner.start(started(ToolClass.READ_ONLY), timeout=TIMEOUT)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(depot.released.set)
    await runner.stop()
    (finished,) = runner.take_results()
    assert finished.result.outcome is ToolOutcome.OK


async def test_a_call_that_paused_after_a_failed_try_does_not_start_without_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("turnkeeper.engine.execution.tool_runner.FIRST_PAUSE", timedelta(microseconds=1))
    depot, lease = Depot(), Held()
    runner, _ = a_runner(depot, Meters(), Traces(), lease=lease)
    lease.is_lost = True
    runner.start(replace(started(ToolClass.IDEMPOTENT), starts=2), timeout=TIMEOUT)
    await asyncio.wait(runner.tasks)
    with pytest.raises(LeaseLost):
        runner.take_results()
    assert depot.starts == 0


async def test_the_pause_before_a_further_start_doubles() -> None:
    call = started(ToolClass.READ_ONLY)
    pauses = [retry_pause(replace(call, starts=starts), 0.5) for starts in (1, 2, 3, 4, 60)]
    assert pauses == [timedelta(), FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, LONGEST_PAUSE]
    assert retry_pause(replace(call, starts=2, tool_class=ToolClass.IRREVERSIBLE), 0.5) == timedelta()
