"""The tool `act` with another description: what an approver read no longer holds."""

from tests import test_tools
from turnkeeper.tools import ToolClass, ToolContext, tool


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, context: ToolContext) -> str:
    """Has an irreversible effect, and tells everybody."""
    return test_tools.act(label, context)
