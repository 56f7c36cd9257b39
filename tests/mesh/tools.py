"""The tool of a run: it takes so long that many turns are inside it whenever a replica is lost."""

import asyncio
from typing import Final

from turnkeeper.tools import ToolClass, tool

SECONDS: Final = 15.0
"""About as long as the model's two messages of a turn together: half of the turns that run are in the tool."""


@tool(tool_class=ToolClass.IDEMPOTENT)
async def dwell(label: str) -> str:
    """Looks into the files."""
    await asyncio.sleep(SECONDS)
    return result_of(label)


def result_of(label: str) -> str:
    """Returns the tool's result for this label."""
    return f"{label} ✓"
