"""The MCP SDK is imported only where the catalogue has an MCP server, and its absence is explained there."""

import asyncio
import sys

import pytest

SERVER = "parse(Path(\"c.toml\"), b\"[[server]]\\nname='a'\\nmcp='stdio'\\ncommand=['x']\").servers[0]"
READ = f"""
import sys
from pathlib import Path
from turnkeeper.tools.catalogue import parse
from turnkeeper.tools.servers import readers
%s
print(readers()["mcp"]({SERVER}).name)
"""


async def ran(code: str) -> str:
    """Returns what a new interpreter prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    return printed.decode()


async def test_a_server_without_mcp_servers_does_not_import_the_sdk() -> None:
    code = "import sys, turnkeeper.app, turnkeeper.terminal.doctor; print({'mcp', 'mcp_types'} & set(sys.modules))"
    assert await ran(code) == "set()\n"


@pytest.mark.parametrize("absent", ["mcp", "mcp_types"])
async def test_without_the_extra_the_catalogue_is_refused_with_what_to_install(absent: str) -> None:
    assert await ran(READ % "") == "a\n"
    printed = await ran(READ % f"sys.modules['{absent}'] = None")
    assert "BadFile: c.toml:3: server a: mcp needs the package mcp: pip install 'turnkeeper[mcp]'" in printed
