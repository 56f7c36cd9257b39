"""One call of an MCP tool, and what its end tells: it never started, it failed, or its outcome is unknown.

The call is sent once. The SDK's `Client` would send it again after a mismatch of headers, and answer by itself what the
server needs to know; its session does neither.
"""

import asyncio
from typing import Final, cast

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, ToolContext, ToolError
from turnkeeper.tools.mcp.content import text_of
from turnkeeper.tools.mcp.listing import Listed
from turnkeeper.tools.mcp.messages import MESSAGE_BYTES, Ending, ending_of
from turnkeeper.tools.mcp.session import McpSession

LATE_TIME: Final = 600.0
"""Seconds beyond the call's own time for which a late result is awaited: the connection is in use meanwhile."""
KEY: Final = "turnkeeper/idempotency-key"
ATTEMPT: Final = "turnkeeper/attempt"
"""Names in the `_meta` of a call, for servers that look at them."""
PROGRESS: Final = 150
"""Characters of the server's own message about progress that are shown, at most: the numbers stand behind it."""
_REFUSED: Final = frozenset({types.HEADER_MISMATCH, types.UNSUPPORTED_PROTOCOL_VERSION})
"""Codes of a server that did not look at the call, because the session is not as it should be."""
_TOO_LARGE: Final = "SSE stream failed: Server-sent event exceeded"
_NO_ANSWER: Final = (
    "Connection closed",
    "SSE stream",
    "Failed to parse",
    "Unexpected content type",
    "server answered a request with 202",
)
"""How messages begin that are the SDK's own, about a call that was sent and has no answer."""


class SessionLost(Exception):
    """The server does not know the session any more, so the call did not start."""


class ConnectionFailed(NotStarted):
    """The call did not start because there is no connection, or because the server wants another session."""


async def call_of(session: McpSession, tool: Listed, arguments: dict[str, object], context: ToolContext) -> str:
    """Calls the tool once, and returns its result as JSON text.

    Raises SessionLost, and what `ToolSource.call` raises: ConnectionFailed for NotStarted.
    """

    async def report(progress: float, total: float | None, message: str | None) -> None:
        share = f"{progress:g} of {total:g}" if total is not None else f"{progress:g}"
        context.report(f"{(message or '')[:PROGRESS]} {share}")

    try:
        result = await session.call_tool(
            tool.foreign_name,
            arguments,
            read_timeout_seconds=context.timeout.total_seconds() + LATE_TIME,
            progress_callback=report,
            meta=cast("types.RequestParamsMeta", {KEY: context.key, ATTEMPT: context.attempt}),
            allow_input_required=True,
        )
    except MCPError as error:
        raise _failure(error) from None
    except (ValidationError, RuntimeError) as error:
        raise OutcomeUnknown(
            f"The tool's server gave an answer that cannot be read ({type(error).__name__})."
        ) from None
    if isinstance(result, types.InputRequiredResult):
        raise ToolError("The tool needs to be told more by a person while it runs, which is not possible here yet.")
    return await asyncio.to_thread(text_of, result, tool)


def _failure(error: MCPError) -> Exception:
    """Returns what the error tells about the call."""
    match ending_of(error):
        case Ending.NOT_SENT:
            return ConnectionFailed("The tool's server cannot be reached, or refuses calls; the call did not start.")
        case Ending.SESSION_LOST:
            return SessionLost()
        case Ending.UNFIT:
            return ToolError(f"The tool ran, and its answer cannot be passed on: {error.error.message}.")
        case Ending.UNKNOWN:
            return _unknown()
    if error.code in _REFUSED:
        return ConnectionFailed("The tool's server wants another session; the call did not start.")
    if error.error.message.startswith(_TOO_LARGE):
        return ToolError(f"The tool ran, and its answer cannot be passed on: it has more than {MESSAGE_BYTES} bytes.")
    if error.code == types.REQUEST_TIMEOUT or error.error.message.startswith(_NO_ANSWER):
        return _unknown()
    return ToolError(error.error.message or f"The tool's server refused the call (code {error.code}).")


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown(
        "The connection to the tool's server broke before it answered; the tool may have taken effect."
    )
