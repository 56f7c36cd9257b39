"""The tool of a run: it takes so long that many turns are inside it whenever a replica is lost."""

import asyncio
from typing import Final

from turnkeeper.tools import ToolClass, tool

SECONDS: Final = 12.0


@tool(tool_class=ToolClass.IDEMPOTENT)
async def dwell(label: str) -> str:
    """Looks into the files."""
    await asyncio.sleep(SECONDS)
    return result_of(label)


def result_of(label: str) -> str:
    """Returns the tool's result for this label."""
    return f"{label} ✓"
