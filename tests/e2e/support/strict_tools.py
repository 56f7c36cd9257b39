"""The `act` of tests.test_tools after its operator asked for more."""

from tests import test_tools
from turnkeeper.tools import ToolClass, ToolContext, tool


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, reason: str, context: ToolContext) -> str:
    """Do what cannot be taken back, and say why."""
    return test_tools.act(f"{label} {reason}", context)
