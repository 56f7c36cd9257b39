"""The [[server]] tables of MCP servers: what they can state, and how a mistake in one is named."""

from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper.start_errors import SettingError
from turnkeeper.tools.catalogue import parse
from turnkeeper.tools.mcp.tables import HttpServer, McpServer, StdioServer, filled_in, server_of
from turnkeeper.watched_file import BadFile

STDIO = 'mcp = "stdio"\ncommand = ["mcp-server-time", "--local-timezone", "UTC"]\n'
HTTP = 'mcp = "http"\nurl = "https://tools.example.com:8443/mcp"\n'


def read(text: str) -> McpServer:
    """Returns the server of a catalogue with this table."""
    return server_of(parse(Path("catalogue.toml"), f'[[server]]\nname = "web"\n{text}'.encode()).servers[0])


def test_a_program() -> None:
    server = read(STDIO + 'env = { LEVEL = "warn" }\ncwd = "/srv"\nidle = "30s"\nrevision = "2025-11-25"\n')
    assert server == StdioServer(
        name="web",
        command=("mcp-server-time", "--local-timezone", "UTC"),
        env={"LEVEL": "warn"},
        cwd="/srv",
        idle=timedelta(seconds=30),
        revision="2025-11-25",
    )


def test_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t")
    server = read(HTTP + 'headers = { Authorization = "Bearer ${TOKEN}" }\nallow_private = true\n')
    assert server == HttpServer(
        name="web",
        url="https://tools.example.com:8443/mcp",
        headers={"Authorization": "Bearer ${TOKEN}"},
        ca=None,
        allow_private=True,
        idle=timedelta(minutes=10),
        revision="",
    )
    assert read('mcp = "http"\nurl = "http://127.0.0.1:1/mcp"\nallow_http = true\n').name == "web"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mcp = "sse"\n', ':3: server web: mcp must be "stdio" or "http"'),
        ("mcp = 7\n", 'mcp must be "stdio" or "http"'),
        ('mcp = "stdio"\n', "command"),
        ('mcp = "stdio"\ncommand = []\n', "command"),
        ('mcp = "stdio"\ncommand = [""]\n', ":4: server web: command must begin with a program"),
        ('mcp = "stdio"\ncommand = "ls -l"\n', "command"),
        ('mcp = "stdio"\ncommand = ["a\\u0000b"]\n', "command"),
        (STDIO + "shell = true\n", ":5: server.0.shell: there is no such key"),
        (STDIO + 'url = "https://h/"\n', "there is no such key"),
        (STDIO + 'env = { "A B" = "1" }\n', "env must have names of variables"),
        (STDIO + 'env = { A = "${NO_SUCH_VARIABLE}" }\n', "NO_SUCH_VARIABLE is not set: set it, or"),
        (STDIO + 'idle = "soon"\n', "must be a duration such as"),
        (STDIO + 'revision = "2024-01-01"\n', "revision"),
        ('mcp = "http"\n', "url"),
        ('mcp = "http"\nurl = "http://h/mcp"\n', "url must begin with https://, or allow_http = true"),
        ('mcp = "http"\nurl = "ftp://h/mcp"\n', "url must begin with https:// and a host"),
        ('mcp = "http"\nurl = "https:///mcp"\n', "url must begin with https:// and a host"),
        ('mcp = "http"\nurl = "https://h:99999/"\n', "url is no address"),
        ('mcp = "http"\nurl = "https://[::1/"\n', "url is no address"),
        ('mcp = "http"\nurl = "https://user:pass@h/"\n', "send a header instead"),
        (HTTP + 'headers = { "Mcp-Session-Id" = "1" }\n', "headers cannot have 'Mcp-Session-Id'"),
        (HTTP + 'headers = { Host = "other" }\n', "headers cannot have 'Host'"),
        (HTTP + 'headers = { "a b" = "1" }\n', "headers cannot have 'a b'"),
        (HTTP + 'headers = { Key = "${NO_SUCH_VARIABLE}" }\n', "NO_SUCH_VARIABLE is not set"),
        (HTTP + 'headers = { Key = "a\\r\\nb" }\n', "headers"),
        (HTTP + 'ca = "/no/such/file"\n', "ca names no file"),
    ],
)
def test_a_mistake_is_named_by_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(BadFile) as refused:
        read(text)
    assert str(refused.value).startswith("catalogue.toml:")
    assert message in str(refused.value)
    assert "pass@" not in str(refused.value)


def test_variables_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file\n")
    environ = {"A": "${B}", "B_FILE": str(tmp_path / "token")}
    assert filled_in("x ${A} y ${B} $A $ {A}", environ) == "x ${B} y from a file $A $ {A}"
    with pytest.raises(SettingError, match="C is not set: set it, or C_FILE to a file with it"):
        filled_in("${C}", environ)
