"""The reference server of the protocol's own project, in TypeScript: `make tools-everything`, which needs Node."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.demo.ports import free_port
from tests.mcp_servers.sources import a_context, at, program, running
from tests.processes import until_call
from turnkeeper.tools.contract import OutcomeUnknown
from turnkeeper.tools.mcp.source import McpTools

PACKAGE: Final = "@modelcontextprotocol/server-everything"
VERSION: Final = "2026.8.31"
FOLDER: Final = Path(__file__).parents[3] / "build/mcp-everything"
PROGRAM: Final = FOLDER / "node_modules" / PACKAGE / "dist/index.js"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Installs the server below build/, once."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        pytest.fail(f"there is no {' and no '.join(missing)}: install Node 20 or later")
    if not PROGRAM.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", f"{PACKAGE}@{VERSION}"]
        subprocess.run(command, cwd=FOLDER, check=True)


@contextlib.asynccontextmanager
async def everything(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Serves over HTTP, and yields the process once it answers."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(PROGRAM), "streamableHttp"),
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def answers() -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/mcp") as response:
                return response.status > 0
        return False

    try:
        await until_call(answers, timeout=30)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def check(source: McpTools) -> None:
    """Calls tools of each kind."""
    lines: list[str] = []
    name = source.name
    await source.refresh()
    assert source.revision == "2025-11-25"
    assert await source.call(f"{name}__echo", {"message": "hi"}, a_context()) == '"Echo: hi"'
    image = await source.call(f"{name}__get-tiny-image", {}, a_context())
    assert "[image, image/png, 4035 bytes: not shown]" in image
    weather = await source.call(f"{name}__get-structured-content", {"location": "New York"}, a_context())
    assert '"temperature": 33' in weather
    arguments: dict[str, object] = {"duration": 1, "steps": 3}
    await source.call(f"{name}__trigger-long-running-operation", arguments, a_context(report=lines.append))
    assert lines == ["1 of 3", "2 of 3", "3 of 3"]


async def test_over_stdio() -> None:
    async with running(program("all", "node", str(PROGRAM), "stdio")) as source:
        await check(source)


async def test_over_http_while_the_server_is_killed_and_loses_its_sessions() -> None:
    port = free_port()
    async with running(at(f"http://127.0.0.1:{port}/mcp")) as source:
        async with everything(port) as process:
            await check(source)
            arguments: dict[str, object] = {"duration": 60, "steps": 60}
            began = asyncio.Event()
            context = a_context(timeout=100, report=lambda _: began.set())
            call = asyncio.create_task(source.call("web__trigger-long-running-operation", arguments, context))
            await began.wait()
            process.kill()
            with pytest.raises(OutcomeUnknown):
                await call
        async with everything(port):
            assert await source.call("web__echo", {"message": "again"}, a_context()) == '"Echo: again"'
