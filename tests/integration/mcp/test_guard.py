"""No process of an MCP server outlives the replica, whatever ends the replica, and whatever the server has started."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import alive, children, until
from turnkeeper.tools.mcp.guard import NOT_FOUND
from turnkeeper.tools.mcp.process import GUARD

REPLICA = """
import asyncio, sys
from pathlib import Path
from tests.mcp_servers.sources import a_context, hostile, running

async def main():
    async with running(hostile(Path(sys.argv[1]), "--deaf")) as source:  # the end of its input does not end it
        await source.refresh()
        print(await source.call("odd__spawn", {}, a_context()), flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_no_process_of_a_server_outlives_its_replica(tmp_path: Path, end: signal.Signals) -> None:
    replica = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", REPLICA, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert replica.stdout is not None
    detached = int(json.loads(await replica.stdout.readline()))
    (guard,) = children(replica.pid)
    server = int((tmp_path / "starts").read_text())
    assert all(map(alive, (guard, server, detached)))
    replica.send_signal(end)
    await replica.wait()
    await until(lambda: not any(map(alive, (guard, server, detached))), timeout=5)


async def guarded(*command: str) -> asyncio.subprocess.Process:
    """Returns a guard of this process's own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9), ("", 0)]
)
async def test_the_guard_ends_as_the_server_does(code: str, status: int) -> None:
    guard = await guarded(sys.executable, "-c", code)
    assert await guard.wait() == status


async def test_a_program_that_cannot_be_started_is_named() -> None:
    guard = await guarded("/no/such/program")
    _, words = await guard.communicate()
    assert guard.returncode == NOT_FOUND
    assert words == b"/no/such/program: No such file or directory\n"


async def test_a_server_that_ignores_the_request_to_end_is_killed() -> None:
    guard = await guarded(sys.executable, "-c", STUBBORN)
    assert guard.stdout is not None
    await guard.stdout.readline()
    (server,) = children(guard.pid)
    guard.terminate()
    assert await guard.wait() == 128 + signal.SIGKILL
    assert not alive(server)


async def test_a_guard_whose_replica_is_gone_starts_nothing() -> None:
    guard = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(GUARD), "1", sys.executable, "-c", "print('started')"),
        stdout=asyncio.subprocess.PIPE,
    )
    words, _ = await guard.communicate()
    assert (guard.returncode, words) == (1, b"")
