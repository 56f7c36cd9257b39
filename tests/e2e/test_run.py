"""`make run`: its lines can be pasted; the program on a taken port is named."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.demo import ports
from tests.demo.paste import page
from tests.demo.program import children
from tests.processes import alive, until

REPOSITORY = Path(__file__).parents[2]


class Running:
    """A process of `make run`, and its output so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""

    async def printed_line(self, pattern: str) -> None:
        """Reads the output until it matches the pattern."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while not re.search(pattern, self.printed, re.MULTILINE):
                line = await self.process.stdout.readline()
                assert line, f"it ended without printing {pattern}:\n{self.printed}"
                self.printed += line.decode()

    def lines(self, pattern: str) -> Iterator[str]:
        """Yields the lines to paste that match the pattern."""
        for match in re.finditer(r"^\.venv/bin/(?:python - <<'END'\n(?:.*\n)*?END|.*)$", self.printed, re.MULTILINE):
            if re.search(pattern, match[0]):
                yield match[0]


@asynccontextmanager
async def run(port: int, data: Path) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.demo.run"),
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": str(data.parent), "PORT": str(port), "DATA": str(data)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.communicate()


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


async def paste(line: str) -> str:
    """Runs a line in a shell in the repository. Returns its output."""
    shell = await asyncio.create_subprocess_shell(
        line, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await shell.communicate()
    assert shell.returncode == 0, f"{line}\n{output.decode()}"
    return output.decode()


@pytest.mark.skipif(not (REPOSITORY / ".venv").exists(), reason="the lines name the programs of .venv")
async def test_every_line_that_it_prints_can_be_pasted(tmp_path: Path, free_port: int) -> None:
    async with run(free_port, tmp_path / "data") as running:
        await running.printed_line("^asyncio.run(.*\n)*END\n(.*\n)*END$")
        assert "Paris" in await paste(next(running.lines("buf curl .*StreamMessage")))
        assert "AWAITING_APPROVAL" in await paste(next(running.lines("buf curl .*SendMessage")))
        await running.printed_line("^# no\n.*REJECT.*$")
        assert "APPROVED" in await paste(next(running.lines("DECISION_APPROVE")))
        assert "lunch is at noon" in await paste(next(running.lines("ListMessages")))
        services, methods, sessions = [await paste(line) for line in running.lines("grpcurl")]
        assert "turnkeeper.v1.ChatService" in services
        assert "rpc StreamMessage" in methods
        assert "Tell Ada" in sessions
        outputs = [await paste(line) for line in running.lines("python - ")]
        assert "Paris" in outputs[0]
        assert "The tool answered: Sent to Ada." in outputs[1]
        outbox = tmp_path / "data" / "outbox.jsonl"
        await until(lambda: len(outbox.read_text().splitlines()) == 2)


async def test_ctrl_c_ends_all_of_it(tmp_path: Path, free_port: int) -> None:
    async with run(free_port, tmp_path / "data") as running:
        await running.printed_line("^Turnkeeper serves on")
        pid = running.process.pid
        started = children(pid) | {grandchild for child in children(pid) for grandchild in children(child)}
        assert len(started) == 3  # the server, its database, its model
        running.process.send_signal(signal.SIGINT)
        assert await running.process.wait() == 0
        assert "new calls are accepted for 0 s" in (tmp_path / "data/server.log").read_text()
        assert not [pid for pid in started if alive(pid)]


async def test_a_killed_server_ends_it_with_the_next_step(tmp_path: Path, free_port: int) -> None:
    async with run(free_port, tmp_path / "data") as running:
        await running.printed_line("^Turnkeeper serves on")
        (server,) = children(running.process.pid)
        os.kill(server, signal.SIGKILL)
        await running.printed_line("^run: the server was ended by SIGKILL. `make run` starts it again, with its data.$")
        assert await running.process.wait() == 2


@pytest.mark.parametrize("own_model", [True, False])
def test_what_it_prints_fits_into_80_columns(own_model: bool) -> None:
    """Commands and programs to paste may be longer."""
    printed = page("127.0.0.1:50051", Path(".turnkeeper"), own_model=own_model)
    prose = re.sub(r"<<'END'\n.*?^END", "", printed, flags=re.DOTALL | re.MULTILINE).splitlines()
    assert [line for line in prose if len(line) > 80 and not line.startswith(".venv/bin/")] == []


async def test_a_taken_port_is_named_with_the_program_that_has_it(tmp_path: Path, free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen(1)
        async with run(free_port, tmp_path / "data") as running:
            output, _ = await running.process.communicate()
    assert running.process.returncode == 2, output.decode()
    assert f"port {free_port} is taken by `" in output.decode()
    assert f"(pid {os.getpid()})" in output.decode()
    assert f"PORT={free_port + 1} make run" in output.decode()
