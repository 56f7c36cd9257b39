"""The programs of the guide "Add a tool in any language", on `turnkeeper dev`."""

import asyncio
import contextlib
import os
import secrets
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import harness
from tests.demo.ports import free_port
from tests.unit.docs.pages import DOCS, blocks
from turnkeeper_client import Client

PAGE = (DOCS / "guide/tools-in-any-language.md").read_text(encoding="utf-8")
SCRIPT = """
[[reply]]
match = "transfer"
after_tools = 0
tool_calls = [{ name = "ledger__transfer", arguments = { to = "bob", amount = 5 } }]

[[reply]]
text = "Told: {tool_result}"
"""
pytestmark = pytest.mark.timeout(150)


@contextlib.asynccontextmanager
async def started(*command: str, folder: Path, ready: bytes, **variables: str) -> AsyncIterator[None]:
    """Starts a program in the folder, and waits until it prints `ready`, if there is such a text."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
            **variables,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = b""
    async with asyncio.timeout(100):
        while ready not in printed:
            line = await process.stdout.readline()
            assert line, printed.decode()
            printed += line
    reading = asyncio.create_task(process.stdout.read())
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await reading


async def test_the_tool_of_the_page_runs_and_verifies_its_calls(tmp_path: Path, mongo_uri: str) -> None:
    tool_port, keys_port, port = free_port(), free_port(), free_port()
    (program,) = blocks(PAGE, "python")
    (tmp_path / "ledger.py").write_text(program.replace("50061", str(tool_port)).replace("8081", str(keys_port)))
    server_file, agents = blocks(PAGE, "toml")
    (tmp_path / "catalogue.toml").write_text(server_file.replace("50061", str(tool_port)))
    (tmp_path / "agents.toml").write_text(agents)
    (commands,) = blocks(PAGE, "sh")
    make_key, run, start = commands.splitlines()
    await asyncio.to_thread(subprocess.run, shlex.split(make_key), cwd=tmp_path, check=True)
    _, *dev = start.split()
    assert start.startswith("TURNKEEPER_JWKS_PORT=8081 turnkeeper dev")
    async with harness.scripted(SCRIPT) as model:
        variables = {
            "MONGODB_URI": mongo_uri,
            "TURNKEEPER_DATABASE": f"turnkeeper_test_{secrets.token_hex(6)}",
            "TURNKEEPER_JWKS_PORT": str(keys_port),
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "unused",
            "OPENAI_MODEL": "scripted",
        }
        async with (
            started(*run.split(), folder=tmp_path, ready=b"the ledger listens"),
            started(*dev, "--port", str(port), folder=tmp_path, ready=b"turnkeeper sessions", **variables),
            Client(f"127.0.0.1:{port}") as client,
        ):
            session = await client.sessions.create("clerk")
            turn = await session.send("transfer", wait=30)
            assert turn.answer[0].text == "Told: 5 to bob: done"
    with sqlite3.connect(tmp_path / "book.sqlite") as book:
        assert len(list(book.execute("SELECT * FROM transfers"))) == 1
