"""A turn's tools, while their server is requested to tell what became of a call."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.processes import until
from tests.unit.engine.execution.test_tool_runner import SHORT, TIMEOUT, Depot, Held, started
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.tool import Call, ReconciledState, ToolClass, ToolOutcome, ToolSpec
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.engine.execution.reconciliation import Reconciler
from turnkeeper.engine.execution.tool_runner import ToolRunner
from turnkeeper.tools.contract import Reconciled, SourceUnreachable, ToolContext
from turnkeeper.tools.toolbox import Toolbox

CALLER = ToolCaller("clerk", "ada")
LOST = replace(started(ToolClass.IRREVERSIBLE), source="depot")


class Ledger(Depot):
    """A depot that tells what became of a call, once the test lets it."""

    name = "depot"

    def __init__(self) -> None:
        super().__init__()
        self.tells = asyncio.Event()
        self.requests = 0
        self.given_up = 0

    def specs(self) -> Sequence[ToolSpec]:
        return [replace(spec, tool_class=ToolClass.IRREVERSIBLE) for spec in super().specs()]

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled:
        self.requests += 1
        try:
            await self.tells.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return Reconciled(state=ReconciledState.DONE, result_json='"fetch"')


def a_runner(ledger: Ledger) -> ToolRunner:
    toolbox = Toolbox([ledger])
    return ToolRunner(
        toolbox,
        caller=CALLER,
        spans=Traces().spans,
        metrics=Meters().metrics,
        detached=set(),
        hold=Held().hold,
        reconciler=Reconciler(toolbox, caller=CALLER, patience=TIMEOUT, jitter=lambda: 0.5),
    )


async def in_question(ledger: Ledger) -> ToolRunner:
    """Returns the runner of a call that has timed out and whose server has not answered yet."""
    runner = a_runner(ledger)
    runner.start(LOST, timeout=SHORT)
    await until(lambda: ledger.requests > 0)
    return runner


async def test_a_call_whose_server_told_its_result_is_awaited_no_longer() -> None:
    ledger = Ledger()
    runner = await in_question(ledger)
    ledger.tells.set()
    await asyncio.wait(runner.tasks)
    (finished,) = runner.take_results()
    assert finished.result.outcome is ToolOutcome.TIMED_OUT
    assert finished.reconciled is not None
    assert runner.results_stored() == ()


async def test_the_next_owner_requests_what_the_owner_before_it_did_not_learn() -> None:
    ledger = Ledger()
    runner = await in_question(ledger)
    (orphan,) = runner.take_orphans()
    await runner.stop()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (orphan.call, ledger.given_up, ledger.cancels) == (LOST, 1, 0)


async def test_a_cancelled_turn_ends_the_request_and_not_the_tool() -> None:
    ledger = Ledger()
    runner = await in_question(ledger)
    await runner.stop()
    assert (runner.take_results(), ledger.given_up, ledger.cancels) == ([], 1, 0)


@pytest.mark.parametrize(
    ("call", "requests"),
    [
        (LOST, 1),
        (replace(LOST, late_attempt=LOST.attempt, late_outcome=ToolOutcome.OK, late_result_json="1"), 0),
        (replace(LOST, tool_class=ToolClass.IDEMPOTENT), 0),
        (replace(LOST, source="python"), 0),
    ],
    ids=["lost", "with-a-late-result", "may-start-again", "of-another-source"],
)
async def test_only_what_nothing_else_tells_is_requested(call: Call, requests: int) -> None:
    ledger = Ledger()
    ledger.tells.set()
    runner = a_runner(ledger)
    for _ in range(2):
        runner.reconcile_lost([call], time_of=lambda _: timedelta())
        if runner.tasks:
            await asyncio.wait(runner.tasks)
    assert (ledger.requests, len(runner.take_results())) == (requests, requests)


class Silent(Ledger):
    """A depot that gives no answer, for so many requests."""

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.left = requests

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled:
        self.left -= 1
        if self.left >= 0:
            raise SourceUnreachable("depot: UNAVAILABLE: it restarts")
        self.tells.set()
        return await super().reconcile(name, context)


async def lines_of(depot: Silent, patience: timedelta, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Returns the lines about a lost call of this depot, each with its level."""
    reconciler = Reconciler(Toolbox([depot]), caller=CALLER, patience=patience, jitter=lambda: 0.0)
    with caplog.at_level(logging.DEBUG, logger="turnkeeper"):
        await reconciler.answer(LOST, running_for=timedelta())
    return [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_requests_without_an_answer_are_one_warning_and_a_line_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("turnkeeper.engine.execution.reconciliation.FIRST_PAUSE", timedelta(milliseconds=1))
    lines = await lines_of(Silent(4), TIMEOUT, caplog)
    assert [level for level, _ in lines] == ["WARNING", "DEBUG", "DEBUG", "DEBUG", "INFO"]
    assert "UNAVAILABLE: it restarts" in lines[0][1]
    assert lines[-1][1] == "what became of a call of tool fetch is DONE, after 4 requests without an answer"


async def test_a_server_that_never_answers_has_a_line_at_the_end_too(caplog: pytest.LogCaptureFixture) -> None:
    lines = await lines_of(Silent(1_000), timedelta(), caplog)
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "is NO_ANSWER, after 1 requests" in lines[-1][1]


async def test_an_answer_at_once_needs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    assert await lines_of(Silent(0), TIMEOUT, caplog) == []
