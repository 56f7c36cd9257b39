"""A server that cannot start prints the reason and what to do in one line; its exit status is 2."""

import asyncio
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from turnkeeper.command_line import main
from turnkeeper.start_errors import PortTaken
from turnkeeper.supervision import supervisor

NOWHERE = "http://127.0.0.1:1/v1"


class Serve:
    """Runs `turnkeeper serve` in this process. Returns the exit status, and its output on standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._printed = printed

    async def __call__(self, *flags: str, **variables: str) -> tuple[int, str]:
        for name in list(os.environ):
            if name.startswith(("TURNKEEPER_", "OPENAI_", "MONGODB_")):
                self._monkeypatch.delenv(name)
        for name, value in {"OPENAI_BASE_URL": NOWHERE, "OPENAI_API_KEY": "unused", **variables}.items():
            self._monkeypatch.setenv(name, value)
        status = await asyncio.wait_for(asyncio.to_thread(main, ["serve", *flags]), 30)
        return status, self._printed.readouterr().err


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serve:
    return Serve(monkeypatch, capsys)


async def test_a_port_that_another_program_has(serve: Serve, mongo_uri: str, database_name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, output = await serve("--port", port, "--mongodb-uri", mongo_uri, "--database", database_name)
    assert status == 2
    assert f"turnkeeper serve: 127.0.0.1:{port} cannot be listened on" in output
    assert "Traceback" not in output


async def test_a_port_that_several_processes_of_ours_share(serve: Serve, mongo_uri: str, database_name: str) -> None:
    """Also while none of them listens."""
    with supervisor.hold_port("127.0.0.1", 0) as held:
        status, output = await serve("--port", str(held), "--mongodb-uri", mongo_uri, "--database", database_name)
    assert status == 2
    assert f"turnkeeper serve: 127.0.0.1:{held} cannot be listened on" in output


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EADDRINUSE, "another program has it. Stop that one, or choose another --port."),
        (errno.EADDRNOTAVAIL, "this machine does not have the address. Choose another --host."),
        (errno.EACCES, "this user may not use the port. Choose a --port from 1024 on."),
    ],
)
def test_an_address_that_cannot_be_bound_names_the_reason(number: int, reason: str) -> None:
    error = PortTaken("[::1]:80", OSError(number, os.strerror(number)))
    assert str(error) == f"[::1]:80 cannot be listened on: {reason}"


@pytest.mark.parametrize(
    ("flags", "variables", "reason"),
    [
        (["--host", "0.0.0.0"], {}, "with identity none every caller may do everything"),
        (["--host", "0.0.0.0", "--processes", "2"], {}, "with identity none every caller may do everything"),
        (
            ["--processes", "2", "--prometheus-port", "65535", "--mongodb-uri", "x"],
            {},
            "--processes must be at most 1 with --prometheus-port 65535",
        ),
        (["--lease", "soon"], {}, "--lease is 'soon'"),
        (["--database", "a b", "--mongodb-uri", "x"], {}, "--database must be at most 63 bytes"),
        ([], {}, "no database is set: pass --embedded for a private one, or set MONGODB_URI"),
        (["--agents", "nowhere.toml", "--mongodb-uri", "x"], {}, "There is no file nowhere.toml"),
        (
            ["--tools", "nowhere.py", "--mongodb-uri", "x"],
            {},
            "There is no file nowhere.py; --tools names",
        ),
    ],
)
async def test_a_setting_that_cannot_be(serve: Serve, flags: list[str], variables: dict[str, str], reason: str) -> None:
    status, output = await serve(*flags, **variables)
    assert status == 2
    assert output.startswith("turnkeeper serve: ")
    assert reason in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_mistake_in_the_settings_file(serve: Serve, tmp_path: Path, processes: str) -> None:
    file = tmp_path / "turnkeeper.toml"
    file.write_text('mongodb_uri = "mongodb://ada:a-password@host/"\n\nprocesss = 2\n')
    status, errors = await serve("--config", str(file), "--processes", processes)
    assert status == 2
    assert errors == f"turnkeeper serve: {file}:3: there is no setting 'processs'; did you mean processes?\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[agent.limits]\nmax_iterations = 2147483648",
            ":4: agent 1 (shop), limits: max_iterations is 2147483648; it must",
        ),
        ('base_url = "http://[::1"', ":3: agent 1 (shop): base_url cannot be: the model's address is no URL."),
        (f"tools = {'[' * 5000}{']' * 5000}", ":3: this is not TOML: it is nested too deeply."),
        (f"instructions = {'[' * 5000}", ":3: this is not TOML: it is nested too deeply."),
        (
            "tools = ['send_mesage']",
            ":3: agent 1 (shop): tools names 'send_mesage', and no source has such a tool; did you",
        ),
        (
            "tools = ['send_*']\n[[agent.policy]]\ntool = 'send_mesage'\naction = 'deny'",
            ":5: agent 1 (shop), policy 1: tool names 'send_mesage', and no source has such a tool; did you mean",
        ),
    ],
)
async def test_a_mistake_in_the_agents_file(serve: Serve, tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "agents.toml"
    file.write_text(f'[[agent]]\nname = "shop"\n{text}\n')
    status, errors = await serve("--agents", str(file), "--mongodb-uri", "mongodb://127.0.0.1:1/")
    assert status == 2
    assert f"turnkeeper serve: {file}{reason}" in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", "--lese", "5s"], "turnkeeper serve: there is no flag --lese, did you mean --lease?"),
        (["serve", "--qqqq=a-password"], "turnkeeper serve: there is no flag --qqqq;"),
        (["serve", "mongodb://ada:a-password@host"], "turnkeeper serve: a value stands alone: its flag is missing"),
        (["serve", "--m=a password"], "turnkeeper serve: there is no flag --m"),
        (["serve", "--mongodb", "x"], "turnkeeper serve: there is no flag --mongodb, did you mean --mongodb-uri?"),
        (["serve", "--embedded=a-password"], "turnkeeper serve: argument --embedded/--no-embedded: it takes no value"),
        (["serve", "-ppassword"], "turnkeeper serve: there is no flag -p;"),
        (["serve", "--lifeline", "a-password"], "turnkeeper serve: argument --lifeline: invalid int value"),
        (["--port=1", "serve"], "turnkeeper: no such option: --port; the flags of a command stand after it; see"),
        (["mongodb://ada:a-password@host"], "turnkeeper: no such command 'mongodb://***@host'; see"),
        (["version", "a-password", "--x=a-password"], "turnkeeper version: no such option: --x; see"),
        (["serve", "--lease"], "turnkeeper serve: argument --lease: expected one argument"),
        (["serve", "--first-token"], "turnkeeper serve: argument --first-token: expected one argument"),
        (["sreve"], "turnkeeper: no such command 'sreve', did you mean 'serve'? See turnkeeper --help"),
        (
            ["model", "scripted", "--prt", "1"],
            "turnkeeper model scripted: there is no flag --prt, did you mean --port?",
        ),
        (["model", "local", "--port", "1"], "turnkeeper model local: there is no flag --port;"),
    ],
)
def test_a_mistake_on_the_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    errors = capsys.readouterr().err
    assert status == 2
    assert errors.startswith(reason)
    assert errors.endswith("--help\n")
    assert len(errors.splitlines()) == 1
    assert "password" not in errors


@pytest.mark.parametrize("command", [[], ["serve"], ["model", "scripted"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_help_is_shown_on_any_terminal(command: list[str], encoding: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "turnkeeper", *command, "--help"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert b"usage: turnkeeper" in run.stdout.lower()
    assert not run.stderr


async def test_no_model(serve: Serve, tmp_path: Path) -> None:
    without = {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}
    status, output = await serve("--embedded", "--data-dir", str(tmp_path), **without)
    assert status == 2
    assert "no model is set: set OPENAI_API_KEY or OPENAI_BASE_URL, pass --local-model" in output


async def test_a_data_folder_that_is_a_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    for flag in (file, file / "below"):
        status, output = await serve("--embedded", "--data-dir", str(flag))
        assert status == 2
        assert output == (
            f"turnkeeper serve: --data-dir {flag} is not a folder: choose a folder; it is made if it is missing\n"
        )


async def test_a_data_folder_where_nothing_can_be_made(serve: Serve) -> None:
    """Not even by root."""
    status, output = await serve("--embedded", "--data-dir", "/proc/turnkeeper")
    assert status == 2
    assert output.startswith("turnkeeper serve: --data-dir /proc/turnkeeper cannot be written (")
    assert len(output.splitlines()) == 1


async def test_a_database_that_is_not_there(serve: Serve) -> None:
    uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"
    status, output = await serve("--mongodb-uri", uri, "--operation-time", "1s", "--database-wait", "1500ms")
    assert status == 2
    reason = "no database answers at 127.0.0.1:1: the connection is refused. Check MONGODB_URI, and that it runs"
    assert f"turnkeeper serve: {reason}\n" in output
    assert "Traceback" not in output


async def test_a_wrong_set_name_is_not_waited_for(serve: Serve, mongo_uri: str) -> None:
    """By default a database that is down is waited for during a minute."""
    status, output = await serve("--mongodb-uri", re.sub("replicaSet=[a-z]+", "replicaSet=other", mongo_uri))
    assert status == 2
    assert "and MONGODB_URI asks for other: write replicaSet=" in output


async def test_what_is_no_address_of_a_database(serve: Serve) -> None:
    status, output = await serve("--mongodb-uri", "mongodb://ada:p@ss/word@host:x/")
    assert status == 2
    assert "turnkeeper serve: MONGODB_URI is not the address of a MongoDB" in output
    assert "word" not in output.replace("password", "")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"OPENAI_BASE_URL": "ftp://models"}, "agent assistant: the model's address must begin with http"),
        ({"OPENAI_BASE_URL": "http://[::1"}, "agent assistant: the model's address is no URL"),
        ({"OPENAI_API_KEY": "ключ"}, "agent assistant: the model's API key is empty or holds characters"),
        ({"SSL_CERT_FILE": "/nowhere.pem"}, "SSL_CERT_FILE or SSL_CERT_DIR holds no certificates that can be read"),
        ({"OPENAI_BASE_URL": "http://models/", "HTTP_PROXY": "gopher://x"}, "the proxy in HTTP_PROXY, HTTPS_PROXY or"),
    ],
)
async def test_a_model_that_no_call_can_reach(serve: Serve, variables: dict[str, str], reason: str) -> None:
    status, output = await serve("--mongodb-uri", "mongodb://127.0.0.1:1/", **variables)
    assert status == 2
    assert reason in output
