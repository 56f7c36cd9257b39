"""Sources of MCP tools for tests, over servers of this machine."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path

from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.mcp.source import McpTools
from turnkeeper.tools.mcp.tables import HttpServer, McpServer, Revision, StdioServer

HOSTILE = Path(__file__).with_name("hostile.py")
IDLE = timedelta(minutes=10)


def hostile(folder: Path, *flags: str, idle: timedelta = IDLE) -> StdioServer:
    """Returns the table of the hostile server, which speaks the revision 2025-11-25."""
    command = (sys.executable, "-I", "-S", str(HOSTILE), str(folder), *flags)
    return StdioServer(name="odd", command=command, env={}, cwd="", idle=idle, revision="")


def program(name: str, *command: str, revision: Revision = "") -> StdioServer:
    """Returns the table of a server that is a program."""
    return StdioServer(name=name, command=command, env={}, cwd="", idle=IDLE, revision=revision)


def at(url: str, *, headers: Mapping[str, str] | None = None, revision: Revision = "") -> HttpServer:
    """Returns the table of a server of this machine over HTTP."""
    return HttpServer(
        name="web", url=url, headers=headers or {}, ca=None, allow_private=True, idle=IDLE, revision=revision
    )


@contextlib.asynccontextmanager
async def running(server: McpServer, environ: Mapping[str, str] = os.environ) -> AsyncIterator[McpTools]:
    """Yields the server's source while it runs."""
    source = McpTools(server, environ)
    task = asyncio.create_task(source.run())
    await asyncio.sleep(0)
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def a_context(*, timeout: float = 30, report: Callable[[str], None] = lambda _: None) -> ToolContext:
    """Returns the context of a call."""
    return ToolContext(
        key="key-1",
        tenant="t",
        session_id="s",
        turn_id="u",
        tool_call_id="c",
        attempt=3,
        timeout=timedelta(seconds=timeout),
        report=report,
    )
