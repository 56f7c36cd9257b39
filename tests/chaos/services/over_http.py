"""`python -m tests.chaos.services.over_http FOLDER`: the desk, an MCP server over HTTP on the official SDK.

It keeps no keys: each call that reaches it takes effect.
"""

import argparse
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel.server import Server

from tests.chaos import effects
from tests.chaos.services.offered import ATTEMPT, DESK, KEY, SCHEMA, tools_of


def server_of(folder: Path) -> Server[Any]:
    """Returns the server, whose effects are lines in the folder."""
    tools = [
        types.Tool(
            name=name,
            description=f"The tool {name}.",
            input_schema=SCHEMA,
            annotations=types.ToolAnnotations(read_only_hint=True) if reads else None,
        )
        for name, reads in tools_of(DESK).items()
    ]

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        meta: Mapping[str, Any] = dict(params.meta or {})
        name, arguments = f"{DESK}__{params.name}", params.arguments or {}
        text = await effects.work(folder, name, arguments, key=meta[KEY], attempt=meta[ATTEMPT])
        return types.CallToolResult(content=[types.TextContent(text=text)])

    return Server(DESK, on_list_tools=list_tools, on_call_tool=call_tool)


def main() -> None:
    """Serves until it is ended, at a port that it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    server = server_of(parser.parse_args().folder)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"{DESK}: serving on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_config=None, timeout_graceful_shutdown=0)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
