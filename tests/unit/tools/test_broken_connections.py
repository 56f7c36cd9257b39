"""What a source says of a call that never reached its tool, or whose connection broke, becomes the right outcome."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.builders import a_call, a_session_key
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolResult, ToolSpec
from turnkeeper.tools import ToolClass, ToolContext
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown
from turnkeeper.tools.toolbox import Toolbox

CALL = a_call(a_session_key(), tool="pay", state=CallState.STARTED, started=True)


class Broken:
    """A source of one tool, whose calls raise `error`."""

    listing = 1

    def __init__(self, error: Exception) -> None:
        self._error = error

    def specs(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(name="pay", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="bank")
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        raise self._error


@pytest.mark.parametrize(
    ("tool_class", "outcome"),
    [
        (ToolClass.READ_ONLY, ToolOutcome.FAILED),
        (ToolClass.IDEMPOTENT, ToolOutcome.FAILED),
        (ToolClass.IRREVERSIBLE, ToolOutcome.UNKNOWN),
    ],
)
async def test_a_call_whose_connection_broke_is_unknown_only_where_it_must_not_run_twice(
    tool_class: ToolClass, outcome: ToolOutcome
) -> None:
    box = Toolbox([Broken(OutcomeUnknown("The connection broke."))])
    finished = await box.run(replace(CALL, tool_class=tool_class))
    assert finished.result == ToolResult(outcome=outcome, result_json='{"error": "The connection broke."}')


@pytest.mark.parametrize("tool_class", [ToolClass.READ_ONLY, ToolClass.IDEMPOTENT, ToolClass.IRREVERSIBLE])
async def test_a_call_that_never_reached_its_tool_has_failed_whatever_its_class(tool_class: ToolClass) -> None:
    box = Toolbox([Broken(NotStarted("No connection; it did not run."))])
    finished = await box.run(replace(CALL, tool_class=tool_class))
    words = '{"error": "No connection; it did not run."}'
    assert finished.result == ToolResult(outcome=ToolOutcome.FAILED, result_json=words)
