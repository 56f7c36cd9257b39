"""Tools: what tool authors import, where the service's tools come from, and how a call is checked and run.

A file of tools needs no more than this:

    from turnkeeper.tools import ToolError, tool
"""

from turnkeeper.domain.tool import ToolClass
from turnkeeper.tools.contract import ToolContext, ToolError
from turnkeeper.tools.python import tool

__all__ = ["ToolClass", "ToolContext", "ToolError", "tool"]
