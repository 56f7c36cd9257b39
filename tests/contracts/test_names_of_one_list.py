"""Two tools of one name in one list: whatever a server speaks, the first is offered, and the log has the second."""

import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import mcp_types as types
import pytest
from mcp.server.lowlevel.server import Server

from tests.contracts.tool_sources import STDIO_SERVER, write_tools
from tests.mcp_servers import sdk_http
from tests.mcp_servers import sources as mcp_servers
from tests.tool_servers.raw import RawServer
from tests.tool_servers.served import connected, served
from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.tools.contract import ServerSource
from turnkeeper.tools.server_limits import SECOND_OF_ITS_NAME

LISTED: Final = (("other", "Another one."), ("echo", "The first."), ("echo", "The second."))
"""Names and descriptions of what each server lists."""


def as_mcp() -> list[types.Tool]:
    return [types.Tool(name=name, description=words, input_schema={"type": "object"}) for name, words in LISTED]


@contextlib.asynccontextmanager
async def over_stdio(folder: Path) -> AsyncIterator[ServerSource]:
    write_tools(folder, as_mcp())
    command = (sys.executable, "-I", "-S", str(STDIO_SERVER), str(folder))
    async with mcp_servers.running(mcp_servers.program("web", *command)) as source:
        yield source


@contextlib.asynccontextmanager
async def over_http(_: Path) -> AsyncIterator[ServerSource]:
    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=as_mcp())

    app = Server[Any]("web", on_list_tools=list_tools).streamable_http_app()
    async with sdk_http.serving(app) as url, mcp_servers.running(mcp_servers.at(url)) as source:
        yield source


@contextlib.asynccontextmanager
async def over_grpc(_: Path) -> AsyncIterator[ServerSource]:
    server = RawServer()
    server.tools = [
        tool_pb2.Tool(name=name, description=words, schema_json='{"type":"object"}') for name, words in LISTED
    ]
    async with served(server) as address, connected(address, name="web") as source:
        yield source


@pytest.mark.parametrize("serving", [over_stdio, over_http, over_grpc])
async def test_the_first_of_two_tools_with_one_name_is_offered(
    serving: Callable[[Path], AbstractAsyncContextManager[ServerSource]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(tmp_path) as source:
        with caplog.at_level(logging.WARNING, logger="turnkeeper"):
            await source.refresh()
            await source.refresh()
        offered = {spec.name: spec.description for spec in source.specs()}
        assert offered == {"web__echo": "The first.", "web__other": "Another one."}
        lines = [record.getMessage() for record in caplog.records if SECOND_OF_ITS_NAME in record.getMessage()]
        assert len(lines) == 1, "once, not at each listing"
        assert "echo" in lines[0]
