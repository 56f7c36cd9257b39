"""The `act` of tests.test_tools after its operator gave it another parameter, which calls may leave out."""

from tests import test_tools
from turnkeeper.tools import ToolClass, ToolContext, tool


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, context: ToolContext, urgent: bool = False) -> str:
    """Has an irreversible effect."""
    return test_tools.act(label, context)
