"""The `act` of tests.test_tools after its operator added a required parameter."""

from tests import test_tools
from turnkeeper.tools import ToolClass, ToolContext, tool


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, reason: str, context: ToolContext) -> str:
    """Has an irreversible effect, for a reason."""
    return test_tools.act(f"{label} {reason}", context)
