"""The tools of the suite of tool sources, served by the Python helper."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.tool_servers.served import a_context
from turnkeeper.tools.failure import ToolFailed as Raised
from turnkeeper.tools.python import PythonTools
from turnkeeper_tool_server import Call, KeyLedger, ToolFailed, ToolServer


def suite_service(tools: PythonTools) -> ToolServer:
    """Returns a server of these tools."""
    server = ToolServer("suite", database=KeyLedger(":memory:", skew=-60.0), key_set=None)
    offer(server, tools)
    return server


def offer(server: ToolServer, tools: PythonTools) -> None:
    """Makes the server offer these tools, each in place of the one with its name."""
    for spec in tools.specs():
        function = _called(tools, spec.name)
        function.__name__, function.__doc__ = spec.name, spec.description
        server.tool(json.loads(spec.schema_json), cancellable=True)(function)


def _called(tools: PythonTools, name: str) -> Callable[[dict[str, Any], Call], Awaitable[object]]:
    async def call(arguments: dict[str, Any], call: Call) -> object:
        try:
            text = await tools.call(name, arguments, a_context(call.key, report=call.progress))
        except Raised as raised:
            raise ToolFailed(raised.failure.message or raised.failure.kind) from None
        return json.loads(text)

    return call
