"""A turn's tools: their telemetry names their source, and calls that must not run twice outlive the run."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests.builders import a_call, a_session_key
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome, ToolSpec
from turnkeeper.engine.execution.tool_runner import ToolRunner
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Finished, Toolbox

TIMEOUT = timedelta(seconds=5)


class Depot:
    """A source of one tool that returns once it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    def specs(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(
                name="fetch", description="Fetches.", schema_json="{}", tool_class=ToolClass.READ_ONLY, source="depot"
            )
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> object:
        await self.released.wait()
        return name


def started(tool_class: ToolClass) -> Call:
    return a_call(
        a_session_key(), tool="fetch", arguments_json="{}", tool_class=tool_class, state=CallState.STARTED, started=True
    )


def a_runner(depot: Depot, meters: Meters, traces: Traces) -> tuple[ToolRunner, set[asyncio.Task[Finished]]]:
    detached: set[asyncio.Task[Finished]] = set()
    return ToolRunner(Toolbox([depot]), spans=traces.spans, metrics=meters.metrics, detached=detached), detached


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
