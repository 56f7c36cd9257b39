"""The workshop's `act` after its operator asked for more."""

from tests import workshop
from turnkeeper.domain.tool import ToolClass
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.python import tool


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, reason: str, context: ToolContext) -> str:
    """Do what cannot be taken back, and say why."""
    return workshop.act(f"{label} {reason}", context)
