"""What a tool's server tells changes the start that was in question, and no other."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.engine.rules.test_outcomes import OUTCOME, S, started, unit_of_work
from turnkeeper.domain.tool import Call, ReconciledState, ToolResult
from turnkeeper.engine.rules.reconciled import record_reconciled
from turnkeeper.tools.contract import Reconciled
from turnkeeper.tools.toolbox import Finished

CALL = started()


@pytest.mark.parametrize("state", list(ReconciledState))
@pytest.mark.parametrize(
    "now",
    [replace(CALL, attempt=2), replace(CALL, state=S.UNKNOWN, unsettled=True)],
    ids=["started-again", "asks"],
)
def test_an_answer_about_an_earlier_start_changes_nothing(now: Call, state: ReconciledState) -> None:
    result = ToolResult(outcome=OUTCOME.TIMED_OUT, result_json="null")
    finished = Finished(call_id=CALL.id, result=result, attempt=CALL.attempt, duration=timedelta())
    uow = unit_of_work(now)
    assert record_reconciled(uow, finished, Reconciled(state=state, result_json="1")) is None
    assert (uow.calls, uow.events) == ((now,), [])
    assert record_reconciled(unit_of_work(), finished, Reconciled(state=state, result_json="1")) is None
