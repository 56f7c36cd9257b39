"""Commands that follow go on when their server is killed and started again, on a terminal and into a pipe."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests import harness
from tests.demo.ports import free_port
from tests.e2e.support.environment import AGENTS
from tests.e2e.terminal.programs import LARGE, SMALL, CommandLine, create, send_in
from tests.pseudo_terminal import CTRL_C
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.model.scripted import ScriptedModel

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = "^act"
tool_calls = [{ name = "act", arguments = { label = "x" } }]

[[reply]]
match = "^(?P<words>.*)"
text = "Heard {words}."
"""


@contextlib.asynccontextmanager
async def serving(
    port: int, mongo_uri: str, database: str, model: ScriptedModel, tool_control: ToolControl
) -> AsyncIterator[harness.ServerProcess]:
    flags = ("--agents", str(AGENTS), "--identity", "none", "--port", str(port))
    variables = {"PYTHONPATH": str(tool_control.folder), FOLDER: str(tool_control.folder)}
    async with harness.server_process(mongo_uri, database, model, flags=flags, variables=variables) as server:
        yield server


def connected(address: str) -> Any:
    return contextlib.closing(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))


async def until_printed(program: asyncio.subprocess.Process, words: str) -> bytes:
    """Returns what the program prints up to the line with the words."""
    assert program.stdout is not None
    output = b""
    while words.encode() not in output:
        line = await asyncio.wait_for(program.stdout.readline(), 30)
        assert line, f"the program has ended after {output!r}"
        output += line
    return output


async def test_what_follows_goes_on_when_the_server_is_started_again(
    mongo_uri: str, module_database: str, model: ScriptedModel, tool_control: ToolControl
) -> None:
    port = free_port()
    turnkeeper = CommandLine(f"127.0.0.1:{port}")
    async with contextlib.AsyncExitStack() as terminals:
        async with serving(port, mongo_uri, module_database, model, tool_control) as server:
            with connected(server.address) as channel:
                session = await asyncio.to_thread(create, harness.Stubs(channel), "asker")
                await send_in(harness.Stubs(channel), session, "one")
            story, wide = [
                await terminals.enter_async_context(turnkeeper.on_terminal("show", session[-6:], "--follow", size=size))
                for size in (SMALL, LARGE)
            ]
            inbox = await terminals.enter_async_context(turnkeeper.on_terminal("approvals", "--watch", size=LARGE))
            piped, piped_inbox = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "turnkeeper", *command, "--address", turnkeeper.address),
                    stdout=asyncio.subprocess.PIPE,
                )
                for command in (("show", session, "-f"), ("approvals", "--watch"))
            ]
            await story.until("model: Heard one.")
            await wide.until("model: Heard one.")
            await inbox.until("Watching what waits")
            before = await until_printed(piped, "model: Heard one.")
            await until_printed(piped_inbox, "Watching what waits")
            await server.kill()
            await story.until(
                lambda text: re.search(r"^no answer from the service for \d s; trying again$", text, re.M) is not None
            )
        async with serving(port, mongo_uri, module_database, model, tool_control) as server:
            with connected(server.address) as channel:
                await send_in(harness.Stubs(channel), session, "two")
                turn = await send_in(harness.Stubs(channel), session, "act")
            end = turn.pending[0].approval_id[-6:]
            await story.until("model: Heard two.")
            await story.until("act waits for you →")
            await inbox.until(f"turnkeeper approve {end} --address {turnkeeper.address}")
            await wide.until("act waits for you →")
            output, inbox_output = [
                await until_printed(program, f"turnkeeper approve {end}") for program in (piped, piped_inbox)
            ]
        output = before + output
        assert b"\x1b" not in inbox_output
        for words in ("begins", "model: Heard one.", "model: Heard two.", "default: two", "default: act"):
            for screen in (story, wide):
                assert screen.text.count(words) == (0 if words == "begins" else 1), screen.text
            assert output.decode().count(words) == (0 if words == "begins" else 1)
        assert b"\x1b" not in output
        assert b"\x1b[" in story.raw  # colours, on a terminal
        story.type(CTRL_C)
        assert await story.ended() == 130
        for program in (piped, piped_inbox):
            program.terminate()
            await program.communicate()
