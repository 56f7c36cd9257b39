"""What a [[server]] of the catalogue states about an MCP server. Its format is in docs/reference/catalogue.md."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from turnkeeper import secret_variables
from turnkeeper.start_errors import SettingError
from turnkeeper.tools.catalogue import Duration, ToolServer

LONGEST: Final = 4_096
"""Characters of a text in the table."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_RESERVED: Final = re.compile(
    r"host|content-.*|accept.*|connection|transfer-encoding|mcp-.*|last-event-id", re.IGNORECASE
)
"""Headers that the protocol sets itself."""

_Text = Annotated[str, StringConstraints(max_length=LONGEST, pattern=r"^[^\x00-\x1f\x7f]*$")]
Revision = Literal["", "2025-11-25", "2026-07-28"]


class McpTable(BaseModel):
    """The keys that both kinds of servers have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    idle: Duration = timedelta(minutes=10)
    """A connection without calls is closed after this time."""
    revision: Revision = ""
    """The revision of the protocol to speak: this one, or one before it; empty: the newest that both sides know."""


class StdioTable(McpTable):
    """The keys of a server that is a program."""

    mcp: Literal["stdio"]
    command: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=256, strict=False)]
    env: Annotated[dict[str, _Text], Field(max_length=256)] = {}
    cwd: _Text = ""


class HttpTable(McpTable):
    """The keys of a server over HTTP."""

    mcp: Literal["http"]
    url: _Text
    headers: Annotated[dict[str, _Text], Field(max_length=64)] = {}
    ca: _Text = ""
    allow_private: bool = False
    allow_http: bool = False


@dataclass(frozen=True, kw_only=True)
class StdioServer:
    """A program that is started on this machine and spoken to through its standard input and output."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    """Variables beside PATH, HOME and the language; `${NAME}` stands for a variable of the service."""
    cwd: str
    """The folder in which it runs; empty: that of the service."""
    idle: timedelta
    revision: Revision


@dataclass(frozen=True, kw_only=True)
class HttpServer:
    """A server that is reached by streamable HTTP."""

    name: str
    url: str
    headers: Mapping[str, str]
    """Sent with each request; `${NAME}` stands for a variable of the service."""
    ca: Path | None
    """The certificates, in PEM, that sign the server's; None: those that the system trusts."""
    allow_private: bool
    """True: the server's address may be one of a private network or of this machine."""
    idle: timedelta
    revision: Revision


McpServer = StdioServer | HttpServer


def server_of(server: ToolServer) -> McpServer:
    """Returns what the table states. Raises BadFile, which names file, line and key."""
    kind = server.values.get("mcp")
    if kind not in ("stdio", "http"):
        server.refuse("mcp", 'must be "stdio" or "http"')
    return _stdio(server, server.read(StdioTable)) if kind == "stdio" else _http(server, server.read(HttpTable))


def filled_in(text: str, environ: Mapping[str, str]) -> str:
    """Returns the text with the variables that it names: each from the environment, or from the file of NAME_FILE.

    Raises SettingError for one that is not set.
    """

    def value(match: re.Match[str]) -> str:
        text = secret_variables.value_of(environ, match[1])
        if not text:
            raise SettingError(
                f"{match[1]} is not set: set it, or {match[1]}{secret_variables.SUFFIX} to a file with it"
            )
        return text

    return _VARIABLE.sub(value, text)


def _stdio(server: ToolServer, table: StdioTable) -> StdioServer:
    if not table.command[0]:
        server.refuse("command", "must begin with a program")
    for name, value in table.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            server.refuse("env", "must have names of variables")
        _check_variables(server, "env", value)
    return StdioServer(
        name=server.name,
        command=table.command,
        env=table.env,
        cwd=table.cwd,
        idle=table.idle,
        revision=table.revision,
    )


def _http(server: ToolServer, table: HttpTable) -> HttpServer:
    try:
        url = urlsplit(table.url)
        has_port = url.port != 0
    except ValueError:
        server.refuse("url", "is no address")
    if url.scheme not in ("http", "https") or not url.hostname or not has_port:
        server.refuse("url", "must begin with https:// and a host")
    if url.scheme == "http" and not table.allow_http:
        server.refuse("url", "must begin with https://, or allow_http = true must stand beside it")
    if url.username is not None or url.password is not None or url.fragment:
        server.refuse("url", "must hold neither a name and password nor a #; send a header instead")
    for name, value in table.headers.items():
        if not _HEADER.fullmatch(name) or _RESERVED.fullmatch(name):
            server.refuse("headers", f"cannot have {name[:40]!r}: the protocol sets it, or it is no header's name")
        _check_variables(server, "headers", value)
    if table.ca and not Path(table.ca).is_file():
        server.refuse("ca", "names no file")
    return HttpServer(
        name=server.name,
        url=table.url,
        headers=table.headers,
        ca=Path(table.ca) if table.ca else None,
        allow_private=table.allow_private,
        idle=table.idle,
        revision=table.revision,
    )


def _check_variables(server: ToolServer, key: str, text: str) -> None:
    """Refuses a text that names a variable which is not set now."""
    try:
        filled_in(text, os.environ)
    except SettingError as error:
        server.refuse(key, f"cannot be filled in: {error}")
