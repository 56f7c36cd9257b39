"""The program of the guide "Connect an MCP server", with the server of another project, on `turnkeeper dev`."""

import asyncio
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.demo.ports import free_port
from tests.processes import alive, children, until
from tests.unit.docs.pages import DOCS, blocks
from turnkeeper.tools import catalogue
from turnkeeper_client import Client

PAGE = (DOCS / "guide/mcp.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.timeout(150)


@pytest_asyncio.fixture
async def server(tmp_path: Path, mongo_uri: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Starts the page's own files by its own command; yields the process, and its address."""
    files = blocks(PAGE, "toml")
    (tmp_path / "catalogue.toml").write_text(files[0])
    (tmp_path / "agents.toml").write_text(files[1])
    command = next(line for block in blocks(PAGE, "sh") for line in block.splitlines() if "turnkeeper dev" in line)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(*command.split(), "--port", str(port)),
        cwd=tmp_path,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "PYTHONUNBUFFERED": "1",
            "MONGODB_URI": mongo_uri,
            "TURNKEEPER_DATABASE": f"turnkeeper_test_{secrets.token_hex(6)}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = b""
    async with asyncio.timeout(100):
        while b"turnkeeper sessions" not in printed:
            line = await process.stdout.readline()
            assert line, printed.decode()
            printed += line
    reading = asyncio.create_task(process.stdout.read())
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await reading


async def test_the_agent_of_the_guide_calls_the_server_whose_processes_end_with_the_service(
    server: tuple[asyncio.subprocess.Process, str],
) -> None:
    process, address = server
    (typed,) = re.findall(r"type `([^`]+)`, and the server's answer", PAGE)
    async with Client(address) as client:
        session = await client.sessions.create("clerk")
        turn = await session.send(typed)
        assert '"timezone": "Asia/Tokyo"' in turn.answer[0].text
    family = [child for pid in children(process.pid) for child in (pid, *children(pid))]
    assert any("mcp-server-time" in command_of(pid) for pid in family)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not any(map(alive, family)), timeout=5)


def command_of(pid: int) -> str:
    """Returns the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_the_other_file_of_the_guide_can_be_read() -> None:
    file = catalogue.parse(Path("catalogue.toml"), blocks(PAGE, "toml")[2].encode())
    assert [server.name for server in file.servers] == ["files"]
    assert file.entry_of("files__write") is not None
