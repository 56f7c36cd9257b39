"""The tools of the suite of tool sources as an MCP server, made with the SDK."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server

from tests.contracts.suite_tools import HALF_WAY
from tests.processes import until
from turnkeeper.tools import ToolContext
from turnkeeper.tools.failure import ToolFailed, failure_of
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.results import UnfitResult


def listed(tools: PythonTools) -> list[types.Tool]:
    """Returns the tools as the protocol lists them."""
    return [
        types.Tool(name=spec.name, description=spec.description, input_schema=json.loads(spec.schema_json))
        for spec in tools.specs()
    ]


def suite_server(tools: Callable[[], PythonTools]) -> Server[Any]:
    """Returns the server of the tools that the function returns."""

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=listed(tools()))

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = params.arguments or {}
        match params.name:
            case "flood":
                for number in range(int(arguments["lines"])):
                    await context.session.report_progress(number, None, f"line {number} {'x' * 1_000}")
                return types.CallToolResult(content=[], structured_content="done")
            case "advance":
                await context.session.report_progress(1, 2, HALF_WAY)
                await until(Path(arguments["file"]).exists)
                return types.CallToolResult(content=[], structured_content="done")
            case "fill":  # beyond what a Python tool may return
                return types.CallToolResult(content=[], structured_content="x" * int(arguments["size"]))
        return await _called(tools(), params.name, arguments)

    return Server("suite", on_list_tools=list_tools, on_call_tool=call_tool)


async def _called(tools: PythonTools, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """Calls the Python function of the same name."""
    about = ToolContext(key="", tenant="", session_id="", turn_id="", tool_call_id="")
    try:
        value = json.loads(await tools.call(name, arguments, about))
    except (ToolFailed, UnfitResult) as failed:
        words = failure_of(failed).message or "The tool failed."
        return types.CallToolResult(content=[types.TextContent(text=words)], is_error=True)
    return types.CallToolResult(content=[], structured_content=value)
