"""Measures what a call of a tool over gRPC costs this process, beside the same coroutine as a tool of its own."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.builders import a_call, a_session_key
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome
from turnkeeper.tools import tool
from turnkeeper.tools.catalogue import parse
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.remote.channel import RemoteServer
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.remote.tokens import CallTokens
from turnkeeper.tools.toolbox import Toolbox

CALLS: Final = 500
FEW_CALLS: Final = 50
ARGUMENTS: Final = {"text": "x" * 500}
CATALOGUE: Final = b'[[server]]\nname = "echo"\ngrpc = "127.0.0.1:1"\n[[tool]]\ntool = "echo__*"\nclass = "read_only"\n'
_SERVER: Final = """
import asyncio
from grpc import aio
from turnkeeper_tool_server import ToolServer

async def main():
    tools = ToolServer("echo", database=":memory:", key_set=None)

    @tools.tool({"type": "object"})
    async def echo(arguments, call):
        "Echoes."
        return arguments["text"]

    server = aio.server()
    tools.add_to(server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@tool(tool_class=ToolClass.READ_ONLY)
async def echo(text: str) -> str:
    """Echoes."""
    return text


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[str]:
    """Starts the tool's server in a process of its own, and yields its address."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _SERVER, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


async def tool_calls(bench: Bench) -> list[Row]:
    """Measures one call at a time, by turns in this process and over gRPC. The server's own CPU time does not count."""
    calls = FEW_CALLS if bench.scale.quick else CALLS
    async with _server() as address:
        remote = RemoteTools(RemoteServer(name="echo", target=address, plaintext=True), CallTokens())
        running = asyncio.create_task(remote.run())
        try:
            await asyncio.sleep(0)
            await remote.refresh()
            content = parse(Path("bench.toml"), CATALOGUE)
            own, other = Toolbox([PythonTools([echo])]), Toolbox([remote], catalogue=content)
            here, there = _calls_of(own, "echo"), _calls_of(other, "echo__echo")
            above = [
                -await _milliseconds(here, calls) + await _milliseconds(there, calls)
                for _ in range(bench.scale.rounds + 1)  # the first one warms up
            ]
        finally:
            running.cancel()
            await asyncio.wait([running])
    about = "CPU of a tool call over gRPC above the same coroutine in the process"
    return [row("tool.grpc.above", about, above[1:], unit="ms")]


def _calls_of(toolbox: Toolbox, name: str) -> Callable[[int], Awaitable[Any]]:
    call: Call = a_call(
        a_session_key(),
        tool=name,
        arguments_json=json.dumps(ARGUMENTS),
        tool_class=ToolClass.READ_ONLY,
        state=CallState.STARTED,
        started=True,
        attempt=1,
    )
    started = iter(range(1 << 60))

    async def run(_: int) -> None:
        key = f"session:call-{next(started)}"
        finished = await toolbox.run(replace(call, key=key, start_time=datetime.now(UTC)))
        assert finished.result.outcome is ToolOutcome.OK, finished.result

    return run


async def _milliseconds(run: Callable[[int], Awaitable[Any]], calls: int) -> float:
    start = time.process_time()
    for number in range(calls):
        await run(number)
    return 1e3 * (time.process_time() - start) / calls


MEASURES = (Measure("tool-calls", "what a tool call over gRPC costs", tool_calls),)
