"""The tools that the suite of tool sources calls, as Python functions. Other sources offer the same ones."""

import asyncio
from pathlib import Path

from tests.processes import until
from turnkeeper.tools import ToolClass, ToolContext, ToolError, tool

HALF_WAY = "half\n  way \u202e \x1b[2J"
"""A line of progress that would do harm on a terminal."""


@tool(tool_class=ToolClass.READ_ONLY)
def echo(text: str) -> str:
    """Returns the text."""
    return text


@tool(tool_class=ToolClass.READ_ONLY)
def refuse() -> str:
    """Fails with words of its own."""
    raise ToolError("There is no such order.")


@tool(tool_class=ToolClass.READ_ONLY)
def crash() -> str:
    """Ends in the worst way that its kind of source has."""
    raise SystemExit(3)


@tool(tool_class=ToolClass.READ_ONLY)
def fill(size: int) -> str:
    """Returns a text of so many characters."""
    return "x" * size


@tool(tool_class=ToolClass.READ_ONLY)
def nothing() -> None:
    """Returns null."""


@tool(tool_class=ToolClass.READ_ONLY)
def nest(levels: int) -> object:
    """Returns lists inside each other."""
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@tool(tool_class=ToolClass.READ_ONLY)
async def wait(file: str) -> str:
    """Writes that it has begun, and waits until it is cancelled, which it writes, too."""
    place = Path(file)
    place.with_suffix(".begun").touch()
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        place.with_suffix(".cancelled").touch()
        raise
    return "never"


@tool(tool_class=ToolClass.READ_ONLY)
async def flood(lines: int, context: ToolContext) -> str:
    """Reports progress in so many lines at once."""
    for number in range(lines):
        context.report(f"line {number} {'x' * 1_000}")
    return "done"


@tool(tool_class=ToolClass.READ_ONLY)
async def advance(file: str, context: ToolContext) -> str:
    """Reports that it is half way, and goes on once the file is there."""
    context.report(HALF_WAY)
    await until(Path(file).exists)
    return "done"


TOOLS = (echo, refuse, crash, fill, nothing, nest, wait, flood, advance)


@tool(tool_class=ToolClass.READ_ONLY, name="echo")
def echo_twice(text: str, times: int) -> str:
    """Returns the text so many times: what `echo` becomes when its source changes."""
    return text * times


CHANGED = tuple(echo_twice if function is echo else function for function in TOOLS)
