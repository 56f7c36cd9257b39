"""Serves tools to Turnkeeper over gRPC, with a ledger of keys that makes each call take effect once.

    server = ToolServer("ledger", database="calls.sqlite", key_set="https://turnkeeper:8081/.well-known/jwks.json")

    @server.tool({"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]})
    async def greet(arguments, call):
        "Greets a person."
        return f"Hello {arguments['to']}"

The package needs the extra `tool-server` of turnkeeper-client.
"""

from turnkeeper_tool_server.ledger import KeyLedger
from turnkeeper_tool_server.server import Call, ToolFailed, ToolServer
from turnkeeper_tool_server.tokens import TokenCheck

__all__ = ["Call", "KeyLedger", "TokenCheck", "ToolFailed", "ToolServer"]
