"""Tries of one call: a failed one is followed by another where the tool's class and the catalogue allow it."""

import pytest

from tests.builders import NOON
from tests.unit.engine.rules.test_outcomes import OUTCOME, TTL, S, started, unit_of_work
from turnkeeper.domain.tool import ToolClass, ToolOutcome, ToolResult
from turnkeeper.engine.rules.turns import record_tool_results
from turnkeeper.tools.toolbox import Finished


@pytest.mark.parametrize("tool_class", list(ToolClass))
@pytest.mark.parametrize("outcome", [OUTCOME.TIMED_OUT, OUTCOME.FAILED])
@pytest.mark.parametrize(("starts", "most_starts"), [(1, 3), (2, 3), (3, 3), (1, 1)])
def test_a_try_that_failed_is_followed_by_another_where_the_class_and_the_number_allow_it(
    tool_class: ToolClass, outcome: ToolOutcome, starts: int, most_starts: int
) -> None:
    call = started(tool_class=tool_class, starts=starts)
    result = ToolResult(outcome=outcome, result_json="{}")
    finished = Finished(call_id=call.id, result=result, duration=TTL, most_starts=most_starts)
    uow = unit_of_work(call)
    record_tool_results(uow, [finished])
    (known,) = uow.calls
    if tool_class.may_start_again and starts < most_starts:
        assert (known.state, known.key, known.starts, uow.events) == (S.READY, call.key, starts, [])
        assert known.start(attempt=3, fence=2, at=NOON).starts == starts + 1
    else:
        is_unknown = outcome is OUTCOME.TIMED_OUT and not tool_class.may_start_again
        assert known.state is (S.UNKNOWN if is_unknown else S.RETURNED)
    assert uow.head.progress
