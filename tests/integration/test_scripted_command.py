"""The command that serves a scripted model, as a process."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

PROGRAM = """
import argparse, asyncio
from turnkeeper.model import command
parser = argparse.ArgumentParser("turnkeeper model scripted")
command.add_arguments(parser)
raise SystemExit(asyncio.run(command.run(parser.parse_args())))
"""


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(*arguments: str) -> tuple[int | None, str, str]:
    """Status, standard output and standard error of a command that ends by itself."""
    async with command(*arguments) as process:
        out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[reply]]\ntext = "from the file"\n', encoding="utf-8")
    async with command("--script", str(script), "--port", "0") as process, aiohttp.ClientSession() as http:
        assert process.stdout
        assert process.stderr
        url = (await process.stdout.readline()).decode().removeprefix("scripted model: ").strip()
        async with http.post(f"{url}/chat/completions", json={"messages": []}) as answer:
            assert "from the file" in await answer.text()
        process.send_signal(number)
        assert await process.wait() == 0
        assert await process.stderr.read() == b""


async def test_a_bad_script_is_one_clear_line(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("[[reply]]\ntext = 1\n", encoding="utf-8")
    assert await ended("--script", str(script)) == (
        2,
        "",
        f"turnkeeper model scripted: {script}: reply 1: text: must be text\n",
    )


async def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, errors = await ended("--port", str(port))
    assert (status, out) == (2, "")
    assert errors == (
        f"turnkeeper model scripted: port {port} on 127.0.0.1 is taken; choose another, or --port 0 for a free one\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--host", "0.0.0.0"), "serves this machine only"),
        (("--host", "elsewhere"), "does not appear to be an IPv4 or IPv6 address"),
        (("--port", "70000"), "port must be"),
        (("--script", "/none.toml"), "/none.toml: cannot be read: No such file"),
    ],
)
async def test_what_cannot_be_served(arguments: tuple[str, ...], complaint: str) -> None:
    status, out, errors = await ended(*arguments)
    assert (status, out) == (2, "")
    assert complaint in errors
    assert errors.count("\n") == 1


async def test_help_has_examples() -> None:
    status, out, _ = await ended("--help")
    assert status == 0
    assert "turnkeeper model scripted --script tour.toml --port 8400" in out
