"""An MCP server over HTTP, made with the SDK: it speaks the revisions 2025-11-25, with sessions, and 2026-07-28."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ImageContent, InputRequiredResult, ResourceLink, TextContent, ToolAnnotations

from tests.processes import until


def sdk_server() -> MCPServer:
    """Returns the server."""
    server = MCPServer("web", version="1")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, idempotent_hint=False))
    async def count(steps: int, context: Context) -> str:
        """Count, and report progress."""
        for step in range(steps):
            await context.report_progress(step, steps, "counting")
        return "counted"

    @server.tool()
    async def picture() -> CallToolResult:
        """Show a picture, and where it is from."""
        return CallToolResult(
            content=[
                TextContent(text="Look:"),
                ImageContent(data="AAAA" * 100, mime_type="image/png"),
                ResourceLink(name="source", uri="file:///a\nb.png"),
            ]
        )

    @server.tool()
    async def confirm() -> CallToolResult | InputRequiredResult:
        """Ask to be called again with more."""
        return InputRequiredResult(request_state="confirm")

    @server.tool()
    async def big(size: int) -> CallToolResult:
        """Return much text."""
        return CallToolResult(content=[TextContent(text="x" * size)])

    @server.tool()
    async def grow(context: Context) -> str:
        """Add a tool, and announce that the list has changed."""
        server.add_tool(add, name="newcomer")
        await context.session.send_tool_list_changed()  # to sessions of 2025-11-25
        await context.notify_tools_changed()  # to those who listen, in 2026-07-28
        return "grown"

    return server


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serves the application in a thread, and yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    await until(lambda: server.started, timeout=30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
