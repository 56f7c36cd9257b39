"""The command that serves a scripted model, as a process."""

import argparse
import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from turnkeeper.model import command


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "model", "scripted", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Refused:
    """Runs the command in this process, where it must fail. Returns its one line of output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> str:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert await command.run(parser.parse_args(arguments)) == 2
        out, errors = self._capsys.readouterr()
        assert (out, errors.count("\n")) == ("", 1)
        return errors


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(capsys)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[reply]]\ntext = "from the file"\n', encoding="utf-8")
    async with started("--script", str(script), "--port", "0") as process, aiohttp.ClientSession() as http:
        assert process.stdout
        assert process.stderr
        url = (await process.stdout.readline()).decode().removeprefix("scripted model: ").strip()
        async with http.post(f"{url}/chat/completions", json={"messages": []}) as answer:
            assert "from the file" in await answer.text()
        process.send_signal(number)
        assert await process.wait() == 0
        assert await process.stderr.read() == b""


async def test_every_request_is_a_line_of_the_record(tmp_path: Path) -> None:
    record = tmp_path / "model.jsonl"
    bodies = [{"messages": [{"role": "user", "content": f"ö\n{number}"}]} for number in range(3)]
    async with started("--record", str(record)) as process, aiohttp.ClientSession() as http:
        assert process.stdout
        url = (await process.stdout.readline()).decode().removeprefix("scripted model: ").strip()
        for body in bodies:
            async with http.post(f"{url}/chat/completions", json=body) as answer:
                await answer.read()
        lines = record.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == bodies


async def test_a_bad_script_is_one_clear_line(refused: Refused, tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("[[reply]]\ntext = 1\n", encoding="utf-8")
    complaint = await refused("--script", str(script))
    assert complaint == f"turnkeeper model scripted: {script}: reply 1: text: must be text\n"


async def test_a_taken_port_is_one_clear_line(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = await refused("--port", str(port))
    assert f"port {port} on 127.0.0.1 is taken; choose another, or --port 0 for a free one" in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--host", "0.0.0.0"), "serves this machine only"),
        (("--host", "elsewhere"), "does not appear to be an IPv4 or IPv6 address"),
        (("--port", "70000"), "port must be 0 to 65535"),
        (("--port", "-1"), "port must be 0 to 65535"),
        (("--script", "/none.toml"), "/none.toml: cannot be read: No such file"),
        (("--record", "/none/x.jsonl"), "/none/x.jsonl: cannot be written: No such file"),
    ],
)
async def test_what_cannot_be_served(refused: Refused, arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in await refused(*arguments)


async def test_help_has_examples() -> None:
    async with started("--help") as process:
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"turnkeeper model scripted --script tour.toml --port 8400" in out
