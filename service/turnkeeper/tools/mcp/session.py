"""A session with an MCP server: the SDK's, over a link of ours, with the newest revision that both sides know."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.client.subscriptions import listen
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from turnkeeper.tools.mcp import http, process
from turnkeeper.tools.mcp.link import CannotOpen, Link, one_line
from turnkeeper.tools.mcp.messages import Ending, ending_of
from turnkeeper.tools.mcp.tables import McpServer, Revision, StdioServer
from turnkeeper.tools.server_limits import MOST_TOOLS

PROBE_TIME: Final = 8.0
"""Seconds for a server to start, and to tell that it knows the newest revision. An older one may not answer at all."""
LIST_TIME: Final = 20.0
"""Seconds for a server to list its tools, all pages."""
MOST_PAGES: Final = 100
_UNLISTED: Final = (MCPError, ValidationError, RuntimeError)
"""What the SDK raises for a server that breaks the protocol."""


class McpSession(ClientSession):
    """The SDK's session, without its check of results."""

    async def validate_tool_result(self, name: str, result: types.CallToolResult) -> None:
        """Does nothing: the source checks a result itself, in bounded time, and without another request."""


@contextlib.asynccontextmanager
async def opened(
    server: McpServer, environ: Mapping[str, str], *, tools_changed: Callable[[], None]
) -> AsyncIterator[tuple[McpSession, Link]]:
    """Opens a session, and closes it at the end of the block. Must be entered and left by one task.

    `tools_changed` is called when the server tells that its list of tools is another one. Raises CannotOpen.
    """

    async def received(message: types.ServerNotification | Exception) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            tools_changed()

    link_of: Any = process.opened if isinstance(server, StdioServer) else http.opened
    about_us = types.Implementation(name="turnkeeper", version=version("turnkeeper"))
    async with (
        link_of(server, environ) as link,
        McpSession(link.read, link.write, message_handler=received, client_info=about_us) as session,
    ):
        try:
            await _agree(session, server.revision)
        except MCPError as error:
            reason = one_line(str(error)) if not link.ended.is_set() else await link.end_text(quoted=True)
            raise CannotOpen(reason) from None
        except (ValidationError, RuntimeError) as error:
            raise CannotOpen(f"it does not speak the protocol ({type(error).__name__})") from None
        yield session, link


async def _agree(session: McpSession, revision: Revision) -> None:
    """Agrees with the server on a revision. Raises what the SDK raises.

    A server that starts slowly may answer the probe after its time: then it refuses the older handshake, and is probed
    again.
    """
    if revision in MODERN_PROTOCOL_VERSIONS:
        await _discover(session)
        return
    if not revision:
        try:
            async with asyncio.timeout(PROBE_TIME):
                await session.discover()
            return
        except MCPError as error:
            if ending_of(error) is Ending.NOT_SENT:
                raise
        except (TimeoutError, ValidationError, RuntimeError):
            pass
    try:
        await session.initialize()
    except MCPError as error:
        if revision or error.code != types.UNSUPPORTED_PROTOCOL_VERSION:
            raise
        await _discover(session)


async def _discover(session: McpSession) -> None:
    """Agrees on the newest revision. Tries it twice: the SDK waits 10 s, and a server may take longer to start."""
    try:
        await session.discover()
    except MCPError as error:
        if error.code != types.REQUEST_TIMEOUT:
            raise
        await session.discover()


async def tools_of(session: McpSession) -> list[types.Tool]:
    """Returns all tools that the server lists. Raises CannotOpen."""
    tools: list[types.Tool] = []
    cursor: str | None = None
    try:
        async with asyncio.timeout(LIST_TIME):
            for _ in range(MOST_PAGES):
                page = await session.list_tools(params=types.PaginatedRequestParams(cursor=cursor) if cursor else None)
                tools += page.tools
                cursor = page.next_cursor
                if not cursor:
                    return tools
                if len(tools) > MOST_TOOLS:
                    break
    except TimeoutError:
        raise CannotOpen(f"it does not list its tools within {LIST_TIME:g} s") from None
    except _UNLISTED as error:
        reason = one_line(str(error)) if isinstance(error, MCPError) else type(error).__name__
        raise CannotOpen(f"its tools cannot be listed: {reason}") from None
    raise CannotOpen(f"its list of tools has no end after {len(tools)} tools")


async def watch_tools(session: McpSession, tools_changed: Callable[[], None]) -> None:
    """Watches the list of tools, where the revision needs a request for that. Ends with the server's stream."""
    capabilities = session.server_capabilities
    if (
        session.protocol_version in MODERN_PROTOCOL_VERSIONS
        and capabilities is not None
        and capabilities.tools is not None
        and capabilities.tools.list_changed
    ):
        with contextlib.suppress(*_UNLISTED):
            async with listen(session, tools_list_changed=True) as changes:
                async for _ in changes:
                    tools_changed()
